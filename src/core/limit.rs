//! Every number that bounds something, with its unit and the rule it comes from.

/// Bytes of plaintext that Encrypt takes at most, so that the ciphertext stays within [`CIPHERTEXT_MAX`].
pub const PLAINTEXT_MAX: usize = CIPHERTEXT_MAX - crate::envelope::OVERHEAD;
/// Bytes of an EncryptResponse.ciphertext at most. SPEC: kube-apiserver `encryptedDEKSourceMaxSize`, 1 kB.
pub const CIPHERTEXT_MAX: usize = 1024;
/// Bytes of a key_id at most. SPEC: kube-apiserver `keyIDMaxSize`, 1 kB.
pub const KEY_ID_MAX: usize = 1024;
/// Bytes of all annotation names and values together at most. SPEC: kube-apiserver `annotationsMaxSize`, 32 kB.
pub const ANNOTATIONS_MAX: usize = 32 * 1024;
/// Bytes of a request's message at most: what the largest Decrypt is made of (34 KiB), and room for its uid and framing.
pub const MESSAGE_MAX: usize = (CIPHERTEXT_MAX + KEY_ID_MAX + ANNOTATIONS_MAX).next_power_of_two();
/// Bytes of the messages of all calls in flight at most, before new ones are refused as overloaded.
pub const MESSAGES_IN_FLIGHT_MAX: usize = 24 << 20;
/// Requests at most whose message is large and not whole yet; the oldest is refused when there is one more.
pub const MESSAGES_INCOMPLETE_MAX: usize = 256;
/// Bytes of a wrapped DEK at most: twice what the largest provider is known to return, far under [`ANNOTATIONS_MAX`].
pub const WRAPPED_DEK_MAX: usize = 8 * 1024;
/// Seals under one DEK at most, whatever the configuration says. SPEC: NIST SP 800-38D 8.3, 2^32 random 96-bit nonces.
pub const DEK_USES_HARD_MAX: u64 = 1 << 32;
/// Calls in flight at once before new ones are refused as overloaded: about 3 KiB each.
pub const CALLS_IN_FLIGHT_MAX: usize = 20_000;
/// Distinct wrapped DEKs being unwrapped or waiting for it at once, before new ones are refused as overloaded.
pub const UNWRAPS_QUEUED_MAX: usize = 4_096;
/// Unwraps on the wire at once, over all KEKs.
pub const UNWRAPS_IN_FLIGHT_MAX: usize = 16;
/// Milliseconds that a call may take when its caller names no deadline, and at most when it does.
pub const CALL_DEADLINE_DEFAULT_MS: u64 = 10_000;
/// Milliseconds that a call may take at most, whatever `grpc-timeout` says.
pub const CALL_DEADLINE_MAX_MS: u64 = 30_000;
