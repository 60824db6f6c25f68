//! Plugins that are sound but for one fault: the command fails the item that the fault is about, says what it saw, and
//! fails no other item, but for those that cannot be had without it.

use crate::support::bad_plugin::fault::Fault;
use crate::support::bad_plugin::faulty::Faulty;
use kms_v2_judge::conformance::{self, Bounds, CommandControl, ITEMS, Outcome, Reach, Report, Settings};
use std::sync::Arc;
use std::time::Duration;

/// Items that take seconds, and are left out where the fault is not about them.
const SLOW: [u8; 5] = [12, 26, 36, 42, 57];
/// Items that need a control.
const CONTROLLED: [u8; 10] = [20, 26, 28, 40, 42, 57, 59, 60, 63, 69];
/// What a client on a socket cannot see for `Sound`, or sees only with more: 4 is for abstract sockets, 9 takes 70 s, 64
/// to 66 need an undecided KMS.
const UNSEEN: [u8; 5] = [4, 9, 64, 65, 66];

/// All items but the slow ones that the fault is not about.
async fn judged(plugin: &Faulty, items: &[u8], timeout: Duration) -> Report {
    let wanted = |n: &u8| !SLOW.contains(n) || items.contains(n);
    let wanted: Vec<u8> = ITEMS.iter().map(|i| i.number).filter(wanted).collect();
    let controlled = items.iter().any(|n| CONTROLLED.contains(n));
    of_these(plugin, &wanted, timeout, controlled.then(|| plugin.control())).await
}

/// These items and no other.
async fn of_these(plugin: &Faulty, items: &[u8], timeout: Duration, control: Option<String>) -> Report {
    let settings = Settings {
        target: plugin.target(),
        timeout,
        bounds: Bounds { rotation: Duration::from_secs(3), recovery: Duration::from_secs(2) },
        only: Some(items.iter().copied().collect()),
        long: false,
        control: control.map(|command| Arc::new(CommandControl::parse(&command).unwrap()) as _),
    };
    conformance::run(settings, Box::new(|_| {}), &mut |_| {}).await.unwrap()
}

/// `items` fail and no others; the first says these words.
async fn fails(plugin: Faulty, items: &[u8], words: &str, timeout: Duration) {
    let report = judged(&plugin, items, timeout).await;
    let failed: Vec<_> = report.items.iter().filter(|i| i.outcome == Outcome::Failed).collect();
    let numbers: Vec<u8> = failed.iter().map(|i| i.item.number).collect();
    assert_eq!(numbers, items, "{failed:#?}");
    for item in &failed {
        assert!(item.detail.ends_with(&format!("; so {}", item.item.consequence)), "{item:?}");
        assert!(item.hint.is_some_and(|hint| !hint.is_empty()), "{item:?}");
    }
    assert!(failed[0].detail.contains(words), "{}", failed[0].detail);
}

/// Long enough that no busy machine makes a fault of its own.
const PATIENT: Duration = Duration::from_secs(20);
/// For faults that are a silence: it is waited for as often as the fault is met.
const BRIEF: Duration = Duration::from_secs(5);
/// A fault that sleeps knows it.
const MEASURED: Duration = Duration::from_secs(6);

macro_rules! faults {
    ($($test:ident: $fault:ident, $timeout:ident, $items:expr, $words:literal;)+) => {
        $(#[tokio::test]
        async fn $test() {
            fails(Faulty::start(Fault::$fault), &$items, $words, $timeout).await;
        })+

        /// The items that these plugins fail.
        pub(super) const FAILED_HERE: &[&[u8]] = &[$(&$items),+];
    };
}

faults! {
    another_content_type_fails_item_1: ContentType, PATIENT, [1], "content-type \"application/json\"";
    a_router_without_localhost_fails_item_2: LocalhostRefused, PATIENT, [2], "HTTP status 421";
    a_path_as_authority_that_is_held_fails_item_3: PathUnanswered, BRIEF, [3], "neither accepted nor refused within 5s";
    a_path_as_authority_that_is_refused_late_fails_item_3: PathRefusedLate, PATIENT, [3], "refused only after 1.";
    a_strange_header_that_is_refused_fails_item_5: UnknownHeaderRefused, PATIENT, [5], "unknown headers: InvalidArgument";
    an_answer_that_is_compressed_fails_item_5: GzipWhereOffered, PATIENT, [5], "offered compression: the answer is no gRPC: the message is compressed";
    any_service_answered_fails_item_6: AnyServiceAnswered, PATIENT, [6], "/nobody.v2.KeyManagementService/Status was answered";
    an_unknown_path_as_internal_error_fails_item_6: UnknownPathIsInternal, PATIENT, [6], "/v2.KeyManagementService/NoSuchMethod: Internal: \"no handler\"";
    hanging_up_on_an_unknown_path_fails_item_6: UnknownPathHangsUp, PATIENT, [6], "/v2.KeyManagementService/NoSuchMethod: no answer";
    // Item 44 has three connections at once.
    a_newest_connection_that_is_the_only_one_fails_item_8: NewestConnectionOnly, PATIENT, [8, 44], "Status on the first of two connections that poll: no answer: ";
    a_deadline_that_is_ignored_fails_item_11: DeadlineIgnored, PATIENT, [11], "Decrypt with grpc-timeout 50m: was answered after 1.";
    cancelled_calls_that_keep_their_place_fail_item_12: CancelledKeepTheirPlace, BRIEF, [12], "after 1000 cancelled calls: Decrypt failed: no answer within the deadline";
    cancelled_calls_that_spoil_its_health_fail_item_12_and_not_19: CancelledSpoilHealth, PATIENT, [12], "afterwards Status.healthz was \"the KMS is away\"";
    few_streams_fail_item_13: FewStreams, PATIENT, [13], "its SETTINGS allow 10 streams at once";
    malformed_messages_that_are_answered_fail_item_14: MalformedIsAnswered, PATIENT, [14], "was answered with success";
    malformed_messages_that_are_not_answered_fail_item_14: MalformedUnanswered, BRIEF, [14], "bytes that are not protobuf: no answer within the deadline";
    hanging_up_on_malformed_messages_fails_item_14: MalformedHangsUp, PATIENT, [14], "bytes that are not protobuf took the connection along";
    a_status_that_asks_the_kms_fails_item_26: StatusAsksTheKms, PATIENT, [26], "of 60 Status calls, 20 a second, took over 100 ms, the slowest ";
    a_status_that_costs_a_call_to_the_kms_fails_item_26: StatusCostsACall, PATIENT, [26], "60 Status calls cost 60 calls to the KMS";
    one_value_for_each_plaintext_fails_item_35: OneValuePerPlaintext, PATIENT, [35], "the first value of a plaintext that was sealed twice: Decrypt failed: DataLoss";
    slots_that_are_used_again_fail_item_36: SlotsUsedAgain, PATIENT, [36], "two plaintexts gave one and the same value";
    // Items 36 and 44 encrypt as often without a pause.
    few_encrypts_in_a_row_fail_item_42: FewEncryptsInARow, PATIENT, [36, 42, 44], "ResourceExhausted: \"the quota of the KMS is used up\"";
    an_encrypt_that_costs_a_call_to_the_kms_fails_item_42: EncryptCostsACall, PATIENT, [42], "20 Encrypts in a row cost 20 calls to the KMS";
    a_third_client_with_its_own_key_fails_item_44: ThirdClientHasItsOwnKey, PATIENT, [44], "a value that another of three connections sealed: Decrypt failed: DataLoss";
    annotations_that_must_come_in_order_fail_item_53: AnnotationsInOrder, PATIENT, [53], "with the annotations in another order: DataLoss";
    few_decrypts_at_once_fail_item_57: FewDecryptsAtOnce, PATIENT, [57], "of 500 equal Decrypts at once: Decrypt failed: ResourceExhausted";
    a_decrypt_that_costs_a_call_to_the_kms_fails_item_57: DecryptCostsACall, PATIENT, [57], "500 equal Decrypts cost 500 calls to the KMS";
    an_unwrap_of_the_first_caller_fails_item_58: UnwrapOfTheFirst, PATIENT, [58], "100 of 100 equal Decrypts, once the first was cancelled: Decrypt failed: Cancelled";
    an_empty_uid_that_is_not_answered_fails_item_62: EmptyUidUnanswered, BRIEF, [62], "Decrypt with an empty uid: no answer within the deadline";
    an_empty_uid_that_opens_to_nothing_fails_item_62: EmptyUidIsEmpty, PATIENT, [62], "with an empty uid Decrypt returned other bytes";

    an_outage_that_fails_status_fails_item_20: OutageFailsStatus, PATIENT, [20], "with the KMS away: Status: Unavailable";
    an_outage_with_another_key_id_fails_item_20: OutageChangesKeyId, PATIENT, [20], "with the KMS away: Status.key_id changed";
    an_outage_for_good_fails_item_28: OutageForGood, PATIENT, [28], "2s after the KMS was restored it is not ok";
    an_outage_that_kills_fails_item_28_and_none_after_it: OutageKills, PATIENT, [28], "does not encrypt and decrypt";
    an_encrypt_that_hangs_in_an_outage_fails_item_40: OutageHangsEncrypt, BRIEF, [40], "with the KMS away: no answer within the deadline";
    a_key_made_up_in_an_outage_fails_item_40: OutageMakesUpAKey, PATIENT, [40], "Encrypt returned a value, and Decrypt of that: after";
    a_decrypt_that_hangs_in_an_outage_fails_item_59: OutageHangsDecrypt, BRIEF, [59], "with the KMS away: no answer within the deadline";
    an_unknown_value_that_hangs_in_an_outage_fails_item_60: OutageHangsUnknown, BRIEF, [60], "with the KMS away: no answer within the deadline";
    an_unknown_value_refused_at_the_deadline_fails_item_60: OutageRefusesAtTheDeadline, MEASURED, [60], "refused only at the deadline, after 5";
    a_rotation_to_and_fro_fails_item_63: RotationToAndFro, PATIENT, [63], "Status.key_id changed 3 times for one rotation";
    a_rotation_that_encrypt_does_not_follow_fails_item_63: RotationWithoutEncrypt, PATIENT, [63], "Encrypt.key_id was not that of the Status before it";
    a_rotation_that_forgets_the_old_fails_item_63: RotationForgetsTheOld, PATIENT, [63], "during the rotation: Decrypt failed: DataLoss";
    a_rotation_that_is_not_seen_fails_item_69: RotationUnseen, PATIENT, [69], "Status.key_id is the same 3s after the rotation";
}

/// The items that a trait is about pass, although it looks like a fault.
async fn passes(plugin: Faulty, items: &[u8]) {
    let report = of_these(&plugin, items, PATIENT, Some(plugin.control())).await;
    for item in &report.items {
        assert_eq!(item.outcome, Outcome::Passed, "{item:?}");
    }
}

macro_rules! harmless {
    ($($test:ident: $trait:ident, $items:expr;)+) => {
        $(#[tokio::test]
        async fn $test() {
            passes(Faulty::start(Fault::$trait), &$items).await;
        })+
    };
}

harmless! {
    a_demand_for_an_authority_passes: AuthorityDemanded, [1, 2, 5, 6, 8];
    kms_v1_beside_v2_passes: ServesV1, [6];
    an_http_router_that_finds_no_unknown_path_passes: UnknownPathIsNotFound, [6];
    thirty_two_bytes_and_no_other_size_pass: ThirtyTwoBytesOnly, [31, 35, 36, 39, 45];
    a_long_message_whose_stream_is_reset_passes: LongIsReset, [14, 54];
    settings_that_come_late_pass: SettingsLate, [1, 12, 13, 36, 57, 58];
    decrypts_that_are_slow_all_the_time_pass: SlowDecrypts, [12, 45, 58];
    a_machine_that_is_busy_at_first_passes: BusyAtFirst, [3, 11, 26];
    a_first_encrypt_that_finds_no_kms_passes: FirstEncryptRefused, [35, 51];
}

/// What cannot be sealed cannot be opened wrongly: kube-apiserver sends 32 bytes and nothing else.
#[tokio::test]
async fn a_size_that_is_refused_leaves_item_61_unchecked() {
    let plugin = Faulty::start(Fault::ThirtyTwoBytesOnly);
    let report = of_these(&plugin, &[61], PATIENT, None).await;
    assert_eq!(report.items[0].outcome, Outcome::NotApplicable, "{:?}", report.items);
}

#[tokio::test]
async fn a_plugin_of_ten_streams_fails_none_of_the_items_with_many_calls_but_13() {
    let plugin = Faulty::start(Fault::FewStreams);
    let report = of_these(&plugin, &[12, 13, 36, 42, 57, 58], PATIENT, Some(plugin.control())).await;
    let failed = report.items.iter().filter(|i| i.outcome != Outcome::Passed);
    assert_eq!(failed.map(|i| i.item.number).collect::<Vec<_>>(), [13], "{:#?}", report.items);
}

/// Without a count, or with a command that cannot count, nobody knows, whatever the plugin costs.
#[tokio::test]
async fn what_was_not_counted_is_not_passed() {
    let plugin = Faulty::start(Fault::DecryptCostsACall);
    for control in [None, Some("false".to_owned()), Some("true".to_owned())] {
        let report = of_these(&plugin, &[26, 42, 57], PATIENT, control).await;
        for item in &report.items {
            assert_eq!(item.outcome, Outcome::NotApplicable, "{item:?}");
            assert!(item.detail.contains("calls to the KMS were not counted"), "{item:?}");
        }
    }
}

/// What proves that a failure is the fault's: without one nothing fails, and everything is checked.
#[tokio::test]
async fn a_plugin_without_a_fault_fails_nothing_and_passes_all_that_can_be_seen() {
    let plugin = Faulty::start(Fault::None);
    let all: Vec<u8> = ITEMS.iter().map(|i| i.number).collect();
    let report = judged(&plugin, &all, PATIENT).await;
    for item in &report.items {
        let seen = !matches!(item.item.reach, Reach::No(_)) && !UNSEEN.contains(&item.item.number);
        let expected = if seen { Outcome::Passed } else { Outcome::NotApplicable };
        assert_eq!((item.outcome, item.hint), (expected, None), "{item:?}");
    }
}

#[tokio::test]
async fn a_name_with_an_at_that_is_refused_fails_item_4() {
    let words = "Status with `:authority: @NAME`: the answer is no gRPC: HTTP status 400";
    fails(Faulty::start_abstract(Fault::AtNameRefused), &[4], words, PATIENT).await;
}

/// In real time, as a client's minute is; the sound one beside it is kept.
#[tokio::test]
async fn a_connection_that_is_closed_after_a_quiet_minute_fails_item_9() {
    let of = async |plugin: Faulty| {
        let settings = Settings {
            target: plugin.target(),
            timeout: PATIENT,
            bounds: Bounds::default(),
            only: Some([9].into()),
            long: true,
            control: None,
        };
        let report = conformance::run(settings, Box::new(|_| {}), &mut |_| {}).await.unwrap();
        (report.items[0].outcome, report.items[0].detail.clone())
    };
    let (sound, bad) = tokio::join!(of(Faulty::start(Fault::None)), of(Faulty::start(Fault::IdleHungUp)));
    assert_eq!(sound, (Outcome::Passed, "served on the same connection".to_owned()));
    assert!(bad.0 == Outcome::Failed && bad.1.starts_with("the plugin closed the idle connection"), "{bad:?}");
}
