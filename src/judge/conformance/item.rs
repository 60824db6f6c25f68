//! The conformance list: what kube-apiserver needs of a KMS v2 plugin, by number, and how far a client can check it.
//!
//! Guarantees: numbers and words are those of docs/conformance.md (`tests/conformance_doc.rs` holds them together); an item
//! that can fail says what kube-apiserver would do about it. Refuses to know how an item is checked.

use serde::{Serialize, Serializer};

const PROCESS: &str = "needs control of the plugin's process or of a second instance";
const KMS: &str = "needs control of the KMS beyond rotation and outage";
const CONFIGURATION: &str = "needs control of the plugin's configuration";
const INSIDE: &str = "needs the plugin's log, metrics, or host";

/// A part of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// A: HTTP/2 and gRPC on the socket.
    Transport,
    /// B: Status.
    Status,
    /// C: Encrypt.
    Encrypt,
    /// D: Decrypt.
    Decrypt,
    /// E: rotation and replicas.
    Rotation,
    /// F: start, stop, crash.
    Lifecycle,
    /// G: logs, metrics, codes.
    Observability,
}

impl Section {
    /// All, in order.
    pub const ALL: [Self; 7] = [
        Self::Transport,
        Self::Status,
        Self::Encrypt,
        Self::Decrypt,
        Self::Rotation,
        Self::Lifecycle,
        Self::Observability,
    ];

    /// Its letter and its name.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Transport => "A. Transport",
            Self::Status => "B. Status",
            Self::Encrypt => "C. Encrypt",
            Self::Decrypt => "D. Decrypt",
            Self::Rotation => "E. Rotation and replicas",
            Self::Lifecycle => "F. Lifecycle",
            Self::Observability => "G. Observability",
        }
    }
}

/// What it takes to check an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The socket.
    Socket,
    /// The socket and more than a minute.
    Long,
    /// The socket and a rotation of the key in the KMS.
    Rotation,
    /// The socket and an outage of the KMS.
    Outage,
    /// The socket, and a count of the calls that the KMS has had. That it does not hold may show without.
    Count,
    /// It fails when its opposite is seen during the run. That it holds needs control of the KMS.
    Watched,
    /// More than a client has: why.
    No(&'static str),
}

impl Reach {
    /// As it stands in docs/conformance.md.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Socket => "yes",
            Self::Long => "`--long`",
            Self::Rotation => "`rotate`",
            Self::Outage => "`outage`",
            Self::Count => "`count`",
            Self::Watched => "if seen",
            Self::No(_) => "no",
        }
    }
}

/// One item of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// 1 to 88.
    pub number: u8,
    /// The part of the list.
    pub section: Section,
    /// What it takes to check it.
    pub reach: Reach,
    /// What must hold.
    pub title: &'static str,
    /// What kube-apiserver, or its operator, gets when it does not. Empty where nothing is checked.
    pub consequence: &'static str,
}

impl Item {
    /// The item of that number.
    #[must_use]
    pub fn of(number: u8) -> Option<Self> {
        ITEMS.iter().find(|item| item.number == number).copied()
    }
}

impl Serialize for Item {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.number)
    }
}

macro_rules! items {
    ($($number:literal, $section:ident, $reach:expr, $title:literal, $consequence:literal;)+) => {
        /// The whole list, in order.
        pub const ITEMS: &[Item] = &[$(Item {
            number: $number,
            section: Section::$section,
            reach: $reach,
            title: $title,
            consequence: $consequence,
        },)+];
    };
}

items! {
    1, Transport, Reach::Socket, "Status over plaintext HTTP/2 on the socket", "the provider never becomes healthy: /readyz fails, and encrypted resources are neither written nor read";
    2, Transport, Reach::Socket, "`:authority: localhost` accepted", "the provider never becomes healthy: /readyz fails, and encrypted resources are neither written nor read (Kubernetes 1.32 and newer)";
    3, Transport, Reach::Socket, "a socket path as `:authority` (Kubernetes 1.29 to 1.31, file socket): accepted, or refused at once", "Kubernetes 1.29 to 1.31 waits for its timeout at every call instead of reporting an error";
    4, Transport, Reach::Socket, "`:authority` `@name` on an abstract socket accepted", "the provider never becomes healthy on this socket";
    5, Transport, Reach::Socket, "unknown headers, `grpc-accept-encoding: gzip`: accepted, reply uncompressed", "a grpc-go of another release or a proxy in between is not served";
    6, Transport, Reach::Socket, "unknown method and service: UNIMPLEMENTED, connection usable", "a client of another API version cannot tell what is wrong, or takes the connection of others along";
    7, Transport, Reach::No(CONFIGURATION), "file and abstract sockets, no trailing NUL", "";
    8, Transport, Reach::Socket, "two clients at once", "during a reload of the EncryptionConfiguration, when two connections poll, the new configuration is dropped";
    9, Transport, Reach::Long, "a connection idle for 70 s is kept", "every poll after a quiet minute starts with a lost connection";
    10, Transport, Reach::No(PROCESS), "GOAWAY with an RPC under way", "";
    11, Transport, Reach::Socket, "`grpc-timeout: 50m` answered by then", "the timeout of the EncryptionConfiguration does not hold the plugin; calls that nobody waits for pile up";
    12, Transport, Reach::Socket, "1,000 cancelled Decrypts leave nothing behind", "timeouts of the API server add up until the plugin does not answer";
    13, Transport, Reach::Socket, "200 parallel streams", "calls wait for each other when an API server starts and reads everything at once";
    14, Transport, Reach::Socket, "malformed, truncated and oversized messages", "one broken caller stops the writes of everybody";
    15, Transport, Reach::No(CONFIGURATION), "socket and directory modes", "";
    16, Status, Reach::Socket, "`version` is exactly `v2`", "every evaluation fails: the provider never becomes healthy";
    17, Status, Reach::Socket, "`version` never changes", "a running API server never takes the change: unhealthy until it is restarted";
    18, Status, Reach::No(PROCESS), "same `version` after a restart under a client", "";
    19, Status, Reach::Socket, "`healthz` is exactly `ok`", "/readyz fails on kms-providers for as long as it says anything else";
    20, Status, Reach::Outage, "KMS down, key known: RPC succeeds, key_id unchanged", "an outage of the KMS stops writes after three minutes, although nothing was lost";
    21, Status, Reach::No(KMS), "KEK disabled: Status fails, so that writes stop", "";
    22, Status, Reach::Socket, "key_id 1 to 1,024 bytes", "Status is refused; writes stop after three minutes";
    23, Status, Reach::No(CONFIGURATION), "long key names cannot make a long key_id", "";
    24, Status, Reach::No(PROCESS), "never a key: an RPC error, not an empty key_id", "";
    25, Status, Reach::Socket, "key_id shows nothing", "key_id is stored in every object and its hash is a metric label: whoever reads etcd or a backup sees it";
    26, Status, Reach::Count, "20 Status a second cost no KMS call of their own", "health polls of all API servers are slow; over the timeout they count as failed";
    27, Status, Reach::No(KMS), "a hanging KMS does not delay Status", "";
    28, Status, Reach::Outage, "`ok` again soon after recovery", "the API server stays not ready after the KMS is back";
    29, Status, Reach::No(KMS), "Decrypt permission missing is noticed", "";
    30, Status, Reach::No(PROCESS), "the wall clock does not matter", "";
    31, Encrypt, Reach::Socket, "Encrypt's key_id equals that Status's", "the answer is thrown away; once no good one came for three minutes, every write of an encrypted resource fails";
    32, Encrypt, Reach::Socket, "ciphertext size", "the answer is thrown away; once no good one came for three minutes, every write of an encrypted resource fails";
    33, Encrypt, Reach::Socket, "annotation names", "the answer is thrown away; once no good one came for three minutes, every write of an encrypted resource fails";
    34, Encrypt, Reach::Socket, "annotation sizes", "the answer is thrown away; once no good one came for three minutes, every write of an encrypted resource fails";
    35, Encrypt, Reach::Socket, "the same plaintext twice", "objects that were stored cannot be read again";
    36, Encrypt, Reach::Socket, "100,000 distinct triples", "two seeds, or two uses of a nonce, cannot be told apart";
    37, Encrypt, Reach::Socket, "plaintext in no output", "the seed of the API server's encryption lies open in etcd";
    38, Encrypt, Reach::Socket, "empty uid at Encrypt", "a call without uid takes the plugin down, or is never answered";
    39, Encrypt, Reach::Socket, "plaintext sizes", "seeds of that size cannot be sealed, or the answer is thrown away";
    40, Encrypt, Reach::Outage, "no KMS: prompt error, nothing made up", "writes hang until the timeout, or are sealed under something that cannot be opened";
    41, Encrypt, Reach::No(KMS), "a rotation between Status and Encrypt", "";
    42, Encrypt, Reach::Count, "20 Encrypts a minute for 10 minutes", "an API server that disagrees about key_id asks for a new seed with every poll, and is not served";
    43, Encrypt, Reach::No(KMS), "Encrypt p99 under 100 ms with a KMS at 50 ms", "";
    44, Encrypt, Reach::Socket, "every result opens on every replica", "what one API server writes another cannot read";
    45, Decrypt, Reach::Socket, "round trip", "objects that were stored cannot be read again, or are read as other bytes";
    46, Decrypt, Reach::No(PROCESS), "after a restart, on a replica, from an empty cache", "";
    47, Decrypt, Reach::No(KMS), "after 1, 5 and 50 rotations", "";
    48, Decrypt, Reach::No(KMS), "a key_id newer than ours", "";
    49, Decrypt, Reach::No(KMS), "unknown key_id: no KMS call", "";
    50, Decrypt, Reach::Socket, "key_id of A, ciphertext of B", "whoever may write to etcd can exchange what it says, and the wrong bytes are cached for a day";
    51, Decrypt, Reach::Socket, "any flipped bit", "whoever may write to etcd can exchange what it says, and the wrong bytes are cached for a day";
    52, Decrypt, Reach::Socket, "annotation removed, added, renamed", "whoever may write to etcd can exchange what it says, and the wrong bytes are cached for a day";
    53, Decrypt, Reach::Socket, "annotation order", "objects that were stored cannot be read again: the order of a protobuf map is not kept";
    54, Decrypt, Reach::Socket, "empty, 1 byte, 1 MiB", "a damaged object in etcd is taken for a good one, or takes the plugin down";
    55, Decrypt, Reach::Socket, "messages show nothing", "the message reaches API clients and logs";
    56, Decrypt, Reach::No(KMS), "1,000 distinct triples under a rate limit", "";
    57, Decrypt, Reach::Count, "500 equal Decrypts: one unwrap", "an API server that starts reads everything at once, and reads fail";
    58, Decrypt, Reach::Socket, "the first caller cancelled", "one request that gives up fails the reads of others";
    59, Decrypt, Reach::Outage, "KMS down, seen before", "reads of what is not in the API server's own cache hang for as long as the KMS is away";
    60, Decrypt, Reach::Outage, "KMS down, not seen", "each such read waits for the whole timeout; lists of many objects never end";
    61, Decrypt, Reach::Socket, "16 and 24 bytes of plaintext", "values that Kubernetes 1.28 and older stored cannot be read";
    62, Decrypt, Reach::Socket, "empty uid at Decrypt", "a call without uid takes the plugin down, or is never answered";
    63, Rotation, Reach::Rotation, "one transition per rotation; Encrypt agrees", "the answer is thrown away; once no good one came for three minutes, every write of an encrypted resource fails";
    64, Rotation, Reach::Watched, "alternating answers: one transition, never back", "every turn makes all stored objects stale and costs a new seed; a storage migration never ends";
    65, Rotation, Reach::Watched, "back to an earlier version: not under its old key_id", "objects that need rewriting look as if they did not";
    66, Rotation, Reach::Watched, "a version that cannot wrap is not announced", "the answer is thrown away; once no good one came for three minutes, every write of an encrypted resource fails";
    67, Rotation, Reach::No(PROCESS), "equal key_id on three replicas", "";
    68, Rotation, Reach::No(PROCESS), "a replica cut off during a rotation", "";
    69, Rotation, Reach::Rotation, "rotation is seen within a bounded time", "nobody knows when a rewrite of all objects may start";
    70, Rotation, Reach::No(PROCESS), "restart between rotation and first poll", "";
    71, Rotation, Reach::Socket, "24 hours of an API server, rotations and outages", "an API server stops writing, or cannot read what it wrote, while the plugin believes to be well";
    72, Lifecycle, Reach::No(PROCESS), "start with the KMS unreachable", "";
    73, Lifecycle, Reach::No(PROCESS), "stale socket", "";
    74, Lifecycle, Reach::No(PROCESS), "a second instance", "";
    75, Lifecycle, Reach::No(PROCESS), "client started first", "";
    76, Lifecycle, Reach::No(PROCESS), "down 3 s and back", "";
    77, Lifecycle, Reach::No(PROCESS), "recovery by a client with grpc-go's backoff", "";
    78, Lifecycle, Reach::No(PROCESS), "SIGTERM with 50 RPCs in flight", "";
    79, Lifecycle, Reach::No(PROCESS), "kill -9 under load", "";
    80, Lifecycle, Reach::No(KMS), "credentials expire and are renewed", "";
    81, Lifecycle, Reach::No(INSIDE), "liveness during an outage", "";
    82, Lifecycle, Reach::No(PROCESS), "upgrade and roll-back", "";
    83, Lifecycle, Reach::No(INSIDE), "no contact to the Kubernetes API", "";
    84, Observability, Reach::No(INSIDE), "uid in one log line with outcome", "";
    85, Observability, Reach::No(INSIDE), "key_id_hash equals kube-apiserver's", "";
    86, Observability, Reach::Socket, "meaningful gRPC codes", "its metrics by grpc_status_code say Unknown, and no alert can tell an outage from a damaged object";
    87, Observability, Reach::No(INSIDE), "root spans without incoming trace context", "";
    88, Observability, Reach::No(INSIDE), "metrics of RPCs, KMS calls, key, rotation", "";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_complete_and_says_why_wherever_it_may_fail() {
        let numbers: Vec<u8> = ITEMS.iter().map(|i| i.number).collect();
        assert_eq!(numbers, Vec::from_iter(1..=88));
        for item in ITEMS {
            assert_eq!(item.consequence.is_empty(), matches!(item.reach, Reach::No(_)), "{}", item.number);
            assert!(!item.title.is_empty() && Item::of(item.number) == Some(*item));
        }
        assert_eq!(Item::of(89), None);
    }
}
