//! Faults to gRPC statuses: the only place where it happens. UNKNOWN never leaves the process.

use kube_kms_core::fault::{Code, Fault};
use kube_kms_core::uid::Uid;
use tonic::Status;

/// The status of a fault: its constant phrase and the uid, and nothing else.
#[must_use]
pub fn status(fault: &Fault, uid: &Uid) -> Status {
    Status::new(code(fault.class().code()), format!("{fault} [uid {uid}]"))
}

/// The code in tonic's spelling.
#[must_use]
pub const fn code(code: Code) -> tonic::Code {
    match code {
        Code::InvalidArgument => tonic::Code::InvalidArgument,
        Code::DeadlineExceeded => tonic::Code::DeadlineExceeded,
        Code::PermissionDenied => tonic::Code::PermissionDenied,
        Code::ResourceExhausted => tonic::Code::ResourceExhausted,
        Code::FailedPrecondition => tonic::Code::FailedPrecondition,
        Code::Internal => tonic::Code::Internal,
        Code::Unavailable => tonic::Code::Unavailable,
        Code::DataLoss => tonic::Code::DataLoss,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube_kms_core::fault::Reason;

    #[test]
    fn every_reason_becomes_its_code_and_carries_the_uid_but_no_cause() {
        for reason in Reason::ALL {
            let fault = Fault::caused_by(*reason, "upstream said secret-host:8200");
            let status = status(&fault, &Uid::parse("u-1"));
            assert_eq!(status.code() as i32, i32::from(reason.class().code() as u8));
            assert_ne!(status.code(), tonic::Code::Unknown);
            assert!(status.message().contains(reason.label()) && status.message().contains("u-1"));
            assert!(!status.message().contains("secret-host"));
        }
    }
}
