//! A client of etcd that reads: one connection at a time, to whichever member answers.
//!
//! Guarantees: asks for nothing that changes etcd; every error is one of [`EtcdError`]'s kinds, so that the scan knows what
//! to do about it. Refuses to know what is read. SPEC: etcd `api/v3rpc/rpctypes` (the texts of its errors); compaction and
//! a page that is too large both come as OutOfRange and are told apart by their text.

use crate::access::{Access, Member, chain};
use crate::rpc::auth_client::AuthClient;
use crate::rpc::kv_client::KvClient;
use crate::rpc::maintenance_client::MaintenanceClient;
use crate::rpc::{AuthenticateRequest, RangeRequest, RangeResponse, StatusRequest};
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// How long one page may take: etcd counts the rest of the range for each, on a disk that may be slow.
const PAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Why etcd did not answer as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EtcdError {
    /// No member could be reached: each with its reason.
    #[error("{}", .0.join("; "))]
    Unreachable(Vec<String>),
    /// etcd does not know the user, or the user may not read this.
    #[error("{0}")]
    Refused(String),
    /// The revision is gone.
    #[error("the revision has been compacted")]
    Compacted,
    /// The answer has more bytes than are taken.
    #[error("an answer is larger than is taken: {0}")]
    TooLarge(String),
    /// It may be otherwise in a moment, or at another member.
    #[error("{0}")]
    Passing(String),
    /// The token is not valid any more.
    #[error("{0}")]
    TokenLost(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

struct Connected {
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    address: String,
    version: String,
}

/// See the module.
pub struct EtcdClient {
    access: Access,
    next: usize,
    connected: Option<Connected>,
}

impl std::fmt::Debug for EtcdClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EtcdClient({})", self.access.addresses())
    }
}

impl EtcdClient {
    /// Connects to the first member that answers, and proves who we are.
    ///
    /// # Errors
    /// [`EtcdError::Unreachable`] when none does, [`EtcdError::Refused`].
    pub async fn connect(access: Access) -> Result<Self, EtcdError> {
        let mut client = Self { access, next: 0, connected: None };
        client.connected().await?;
        Ok(client)
    }

    /// The member that answered last, and its version.
    #[must_use]
    pub fn member(&self) -> Option<(&str, &str)> {
        self.connected.as_ref().map(|c| (c.address.as_str(), c.version.as_str()))
    }

    /// The next call goes to the next member, on a new connection.
    pub fn leave(&mut self) {
        if self.connected.take().is_some() {
            self.next = self.next.saturating_add(1);
        }
    }

    /// One page.
    ///
    /// # Errors
    /// See [`EtcdError`]. Nothing is tried again here.
    pub async fn range(&mut self, request: RangeRequest, bytes_max: usize) -> Result<RangeResponse, EtcdError> {
        let connected = self.connected().await?;
        let mut kv = KvClient::new(connected.channel.clone()).max_decoding_message_size(bytes_max);
        let mut request = Request::new(request);
        request.set_timeout(PAGE_TIMEOUT);
        if let Some(token) = &connected.token {
            request.metadata_mut().insert("token", token.clone());
        }
        let answer = tokio::time::timeout(PAGE_TIMEOUT, kv.range(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
        answer.map(tonic::Response::into_inner).map_err(|status| classify(&status))
    }

    /// The value of one key, and its revision.
    ///
    /// # Errors
    /// As [`EtcdClient::range`].
    pub async fn one(&mut self, key: &[u8]) -> Result<Option<(bytes::Bytes, i64)>, EtcdError> {
        let request = RangeRequest { key: bytes::Bytes::copy_from_slice(key), ..RangeRequest::default() };
        let answer = self.range(request, usize::MAX).await?;
        Ok(answer.kvs.into_iter().next().map(|kv| (kv.value, kv.mod_revision)))
    }

    async fn connected(&mut self) -> Result<&Connected, EtcdError> {
        if self.connected.is_none() {
            self.connected = Some(self.any_member().await?);
        }
        self.connected.as_ref().ok_or_else(|| EtcdError::Passing("not connected".to_owned()))
    }

    async fn any_member(&mut self) -> Result<Connected, EtcdError> {
        let mut reasons = Vec::new();
        for _ in 0..self.access.members.len() {
            let at = self.next.checked_rem(self.access.members.len()).unwrap_or(0);
            let Some(member) = self.access.members.get(at).cloned() else { break };
            match self.try_member(&member).await {
                Ok(connected) => return Ok(connected),
                // Another member would say the same.
                Err(refused @ EtcdError::Refused(_)) => return Err(refused),
                Err(error) => reasons.push(format!("{}: {error}", member.address)),
            }
            self.next = at.saturating_add(1);
        }
        Err(EtcdError::Unreachable(reasons))
    }

    async fn try_member(&self, member: &Member) -> Result<Connected, EtcdError> {
        let timeout = self.access.timeout;
        let late = |_| EtcdError::Passing(format!("no connection within {timeout:?}"));
        let connecting = tokio::time::timeout(timeout, member.endpoint.connect());
        let channel = connecting.await.map_err(late)?.map_err(|e| EtcdError::Passing(chain(&e)))?;
        // A member that cannot serve, and a certificate that is refused after the handshake, show here and not on page one.
        let mut maintenance = MaintenanceClient::new(channel.clone());
        let status = tokio::time::timeout(timeout, maintenance.status(StatusRequest {})).await;
        let status = status.map_err(|_| EtcdError::Passing(format!("no answer within {timeout:?}")))?;
        let version = match status {
            Ok(status) if status.get_ref().leader == 0 => {
                return Err(EtcdError::Passing("it has no leader".to_owned()));
            }
            Ok(status) => status.into_inner().version,
            // Not everybody may ask for it, and nothing depends on it.
            Err(status) if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated) => String::new(),
            Err(status) => return Err(classify(&status)),
        };
        let mut connected = Connected { channel, token: None, address: member.address.clone(), version };
        connected.token = self.token(&connected).await?;
        Ok(connected)
    }

    async fn token(&self, connected: &Connected) -> Result<Option<MetadataValue<Ascii>>, EtcdError> {
        let Some(user) = &self.access.user else { return Ok(None) };
        let request = AuthenticateRequest { name: user.name.clone(), password: user.password.as_str().to_owned() };
        let mut auth = AuthClient::new(connected.channel.clone());
        let answer = tokio::time::timeout(self.access.timeout, auth.authenticate(request)).await;
        let answer = answer.map_err(|_| EtcdError::Passing("no answer to the password in time".to_owned()))?;
        let token = match answer {
            Ok(answer) => answer.into_inner().token,
            // SPEC: rpctypes.ErrAuthNotEnabled. etcdctl goes on without, as everybody may read.
            Err(status) if status.message().contains("authentication is not enabled") => return Ok(None),
            Err(status) => return Err(classify(&status)),
        };
        let mut token: MetadataValue<Ascii> =
            token.parse().map_err(|_| EtcdError::Failed("etcd's token is no header".to_owned()))?;
        token.set_sensitive(true);
        Ok(Some(token))
    }
}

/// SECURITY: the texts are etcd's and the library's; neither repeats what was sent.
fn classify(status: &Status) -> EtcdError {
    let text = match std::error::Error::source(status) {
        Some(source) => chain(source),
        None => status.message().to_owned(),
    };
    let has = |part: &str| status.message().contains(part);
    match status.code() {
        Code::OutOfRange if has("compacted") => EtcdError::Compacted,
        Code::OutOfRange | Code::ResourceExhausted if has("too large") || has("larger than max") => {
            EtcdError::TooLarge(text)
        }
        // A member that lags behind the one that was asked before.
        Code::OutOfRange if has("future revision") => EtcdError::Passing(text),
        Code::ResourceExhausted | Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
            EtcdError::Passing(text)
        }
        Code::Unauthenticated if has("invalid auth token") => EtcdError::TokenLost(text),
        Code::Unauthenticated | Code::PermissionDenied => EtcdError::Refused(text),
        // SPEC: rpctypes.ErrUserEmpty, ErrAuthFailed, ErrAuthOldRevision.
        Code::InvalidArgument if has("revision in auth store is old") => EtcdError::TokenLost(text),
        Code::InvalidArgument if has("user name is empty") || has("authentication failed") => EtcdError::Refused(text),
        // The connection broke: made here, not by etcd.
        Code::Unknown | Code::Internal if std::error::Error::source(status).is_some() || has("h2 protocol") => {
            EtcdError::Passing(text)
        }
        code => EtcdError::Failed(format!("{code:?}: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_etcd_says_is_known_by_code_and_text() {
        let kind = |code, text: &str| classify(&Status::new(code, text));
        let text = "etcdserver: mvcc: required revision has been compacted";
        assert_eq!(kind(Code::OutOfRange, text), EtcdError::Compacted);
        let text = "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes";
        assert!(matches!(kind(Code::OutOfRange, text), EtcdError::TooLarge(_)));
        let text = "grpc: trying to send message larger than max (9 vs. 8)";
        assert!(matches!(kind(Code::ResourceExhausted, text), EtcdError::TooLarge(_)));
        let text = "etcdserver: mvcc: required revision is a future revision";
        assert!(matches!(kind(Code::OutOfRange, text), EtcdError::Passing(_)));
        for text in ["etcdserver: leader changed", "etcdserver: request timed out", "etcdserver: no leader"] {
            assert!(matches!(kind(Code::Unavailable, text), EtcdError::Passing(_)));
        }
        let text = "etcdserver: too many requests";
        assert!(matches!(kind(Code::ResourceExhausted, text), EtcdError::Passing(_)));
        let text = "etcdserver: permission denied";
        assert!(matches!(kind(Code::PermissionDenied, text), EtcdError::Refused(_)));
        let text = "etcdserver: user name is empty";
        assert!(matches!(kind(Code::InvalidArgument, text), EtcdError::Refused(_)));
        let text = "etcdserver: authentication failed, invalid user ID or password";
        assert!(matches!(kind(Code::InvalidArgument, text), EtcdError::Refused(_)));
        let text = "etcdserver: invalid auth token";
        assert!(matches!(kind(Code::Unauthenticated, text), EtcdError::TokenLost(_)));
        assert!(matches!(kind(Code::Unimplemented, "x"), EtcdError::Failed(_)));
    }
}
