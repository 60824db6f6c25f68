//! What every KEK provider does, in one list, run against each of them.
//!
//! To add a provider: write a [`bench::Bench`] for it beside those in `kek_conformance/` (how to make an instance, another
//! KEK, and how to break it), and one `conformance!` line below. The behaviours themselves are in
//! `kek_conformance/behaviour.rs` and know the port `Kek` only. A provider whose KMS cannot be broken at will (a real one)
//! takes `plain_conformance!`.
//!
//! Each behaviour gets a bench of its own, on a runtime of its own with one thread for blocking work, so that "the disk
//! hangs" can be played.

pub mod aws;
mod behaviour;
mod bench;
mod local;
mod moto;

/// One test for each behaviour that any KMS shows.
macro_rules! plain_conformance {
    ($bench:expr) => {
        conformance!(@each $bench;
            a_dek_comes_back,
            the_reference_is_stable_over_calls_and_instances,
            two_wraps_of_one_dek_differ,
            a_blob_is_at_most_eight_kibibytes,
            another_context_is_rejected,
            sixty_four_calls_at_once_each_get_their_own_answer,
            a_dropped_call_does_no_harm,
            may_unwrap_answers_without_a_call,
        );
    };
}

/// One test for each behaviour of the whole list.
macro_rules! conformance {
    (@each $bench:expr; $($name:ident,)+) => {
        $(
            #[test]
            fn $name() {
                $crate::kek_conformance::bench::run(concat!(module_path!(), "::", stringify!($name)), || $bench, async |bench| {
                    $crate::kek_conformance::behaviour::$name(bench).await;
                });
            }
        )+
    };
    ($bench:expr) => {
        plain_conformance!($bench);
        conformance!(@each $bench;
            // moto calls these a denial, which AWS does not.
            another_kek_is_rejected,
            an_empty_blob_cannot_be_asked_for,
            each_flipped_byte_is_rejected,
            each_shorter_blob_is_rejected,
            the_version_changes_with_a_rotation_and_old_blobs_keep_theirs,
            a_slow_kms_is_a_deadline_in_time,
            a_call_that_is_dropped_while_it_waits_does_no_harm,
            an_unreachable_kms_is_transient,
            a_denial_is_a_denial,
            a_disabled_kek_is_dead,
            a_restart_in_between_is_got_over,
            nothing_secret_is_printed,
        );
    };
}

use {conformance, plain_conformance};

mod on_local {
    super::conformance!(Ok(super::local::LocalBench::new()));
}

mod on_aws {
    super::conformance!(Ok(super::aws::AwsBench::by_alias()));
}

mod on_aws_by_arn {
    super::conformance!(Ok(super::aws::AwsBench::by_arn()));
}

mod on_moto {
    super::plain_conformance!(super::moto::MotoBench::start());
}
