//! What can be wrong with a plugin that is sound otherwise, each in the words of whoever would have built it so.
//!
//! The items are those of docs/conformance.md.

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// None: a sound plugin.
    None,

    /// Item 1: its answers are of another content type.
    ContentType,
    /// Item 2: a router by host name, which knows no `localhost`.
    LocalhostRefused,
    /// Item 3: a path as authority is neither accepted nor refused.
    PathUnanswered,
    /// Item 3: a path as authority is refused, after a while.
    PathRefusedLate,
    /// Item 4: a name with `@` is no host for it.
    AtNameRefused,
    /// Item 5: it refuses headers that it has never heard of.
    UnknownHeaderRefused,
    /// Item 5: it compresses what may be compressed.
    GzipWhereOffered,
    /// Item 6: it looks at the method and not at the service.
    AnyServiceAnswered,
    /// Item 6: an unknown path is an internal error.
    UnknownPathIsInternal,
    /// Item 6: it hangs up on an unknown path.
    UnknownPathHangsUp,
    /// Item 8: the newest connection is the only one.
    NewestConnectionOnly,
    /// Item 9: it hangs up after a quiet minute.
    IdleHungUp,
    /// Item 11: it waits for its KMS whatever the deadline.
    DeadlineIgnored,
    /// Item 12: a cancelled Decrypt keeps its place among those that are served.
    CancelledKeepTheirPlace,
    /// Item 12: a burst of cancelled Decrypts makes it say for a while that it is not well.
    CancelledSpoilHealth,
    /// Item 13: ten streams and no more.
    FewStreams,
    /// Item 14: what cannot be decoded is answered with an empty message.
    MalformedIsAnswered,
    /// Item 14: what cannot be decoded is not answered.
    MalformedUnanswered,
    /// Item 14: it hangs up on what cannot be decoded.
    MalformedHangsUp,

    /// Item 26: some Status calls wait for the KMS.
    StatusAsksTheKms,
    /// Item 26: every Status asks a KMS that is fast.
    StatusCostsACall,

    /// Item 35: it keeps one value of each plaintext.
    OneValuePerPlaintext,
    /// Item 36: what it returns is the number of a slot, and slots are used again.
    SlotsUsedAgain,
    /// Item 42: Encrypts in a row are too many.
    FewEncryptsInARow,
    /// Item 42: every Encrypt asks the KMS.
    EncryptCostsACall,
    /// Item 44: the third client's key is its own.
    ThirdClientHasItsOwnKey,

    /// Item 53: annotations are authenticated in the order in which they come.
    AnnotationsInOrder,
    /// Item 57: it serves 200 Decrypts at once and refuses the rest.
    FewDecryptsAtOnce,
    /// Item 57: every Decrypt asks the KMS.
    DecryptCostsACall,
    /// Item 58: an unwrap that several wait for belongs to the first of them.
    UnwrapOfTheFirst,
    /// Item 62: a Decrypt without uid is never answered.
    EmptyUidUnanswered,
    /// Item 62: a Decrypt without uid returns nothing, as a success.
    EmptyUidIsEmpty,

    /// Item 20: no KMS, no Status.
    OutageFailsStatus,
    /// Item 20: no KMS, another key_id.
    OutageChangesKeyId,
    /// Item 28: an outage that was noticed is never over.
    OutageForGood,
    /// Item 28: after an outage it neither encrypts nor decrypts any more.
    OutageKills,
    /// Item 40: without a KMS an Encrypt is never answered.
    OutageHangsEncrypt,
    /// Item 40: without a KMS it seals under a key that nobody keeps.
    OutageMakesUpAKey,
    /// Item 59: without a KMS nothing is opened, and nothing refused.
    OutageHangsDecrypt,
    /// Item 60: without a KMS an unknown value waits for ever.
    OutageHangsUnknown,
    /// Item 60: without a KMS an unknown value is refused at the deadline.
    OutageRefusesAtTheDeadline,

    /// Item 63: it goes to and fro before it stays.
    RotationToAndFro,
    /// Item 63: Status is ahead, and Encrypt does not follow.
    RotationWithoutEncrypt,
    /// Item 63: what was sealed before is gone.
    RotationForgetsTheOld,
    /// Item 69: it never asks for the current version.
    RotationUnseen,

    // Harmless: what a good plugin may be like.
    /// A request without authority is a bad one, as for gRPC's C core. kube-apiserver always sends one.
    AuthorityDemanded,
    /// It serves KMS v1 beside v2.
    ServesV1,
    /// It has a router of HTTP, to which an unknown path is not found.
    UnknownPathIsNotFound,
    /// It takes 32 bytes, as kube-apiserver sends, and refuses the rest.
    ThirtyTwoBytesOnly,
    /// It resets the stream of a message that is far too long.
    LongIsReset,
    /// Its SETTINGS take a while, and allow 200 streams.
    SettingsLate,
    /// It unwraps at each Decrypt, which takes a while.
    SlowDecrypts,
    /// The machine is busy: whatever has a bound misses it the first time.
    BusyAtFirst,
    /// Its first Encrypt finds no connection to the KMS yet.
    FirstEncryptRefused,
}
