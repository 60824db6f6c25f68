//! The list: what the core and the use cases rely on, of any provider.

use super::bench::{Bench, CANARY_DEK, call, context, dek, unwrap, wrap};
use crate::support::canary::{self, Canary};
use futures_util::future::{join, join_all};
use kube_kms_core::annotation::WrappedDek;
use kube_kms_core::fault::{Class, Fault, Reason};
use kube_kms_core::kek_ref::KekRef;
use kube_kms_core::port::{Kek, KekCall, Wrapped};
use std::time::{Duration, Instant};

fn with_blob(wrapped: &Wrapped, blob: Vec<u8>) -> Wrapped {
    Wrapped { dek: WrappedDek::parse(blob).unwrap(), kek: wrapped.kek.clone() }
}

/// It works, as if nothing had ever been wrong.
async fn assert_well(kek: &dyn Kek) {
    let wrapped = wrap(kek).await.unwrap();
    assert!(unwrap(kek, &wrapped).await.unwrap().dek.same_as(&dek(CANARY_DEK)));
}

pub async fn a_dek_comes_back(bench: &dyn Bench) {
    let kek = bench.kek();
    let wrapped = wrap(&*kek).await.unwrap();
    let back = unwrap(&*kek, &wrapped).await.unwrap();
    assert_eq!(back.dek.expose_bytes(), CANARY_DEK);
    assert_eq!(back.version.kek, wrapped.kek, "the version is of another KEK than the reference");
    // Another process, later.
    assert!(unwrap(&*bench.kek(), &wrapped).await.unwrap().dek.same_as(&dek(CANARY_DEK)));
    // The edges of what a DEK can be.
    for raw in [[0; 32], [0xff; 32]] {
        let wrapped = kek.wrap_dek(&dek(&raw), &context("prod"), &call()).await.unwrap();
        assert_eq!(unwrap(&*kek, &wrapped).await.unwrap().dek.expose_bytes(), &raw);
    }
}

pub async fn the_reference_is_stable_over_calls_and_instances(bench: &dyn Bench) {
    let (one, two) = (bench.kek(), bench.kek());
    let first = wrap(&*one).await.unwrap();
    assert_eq!(first.kek.kind(), one.kind().as_str());
    for wrapped in [wrap(&*one).await.unwrap(), wrap(&*two).await.unwrap()] {
        assert_eq!(wrapped.kek, first.kek);
        let (a, b) = (unwrap(&*one, &first).await.unwrap(), unwrap(&*two, &wrapped).await.unwrap());
        assert_eq!(a.version, b.version, "replicas would report different key_ids");
    }
    assert_ne!(wrap(&*bench.other()).await.unwrap().kek, first.kek);
}

pub async fn two_wraps_of_one_dek_differ(bench: &dyn Bench) {
    let kek = bench.kek();
    let (one, two) = (wrap(&*kek).await.unwrap(), wrap(&*kek).await.unwrap());
    assert_ne!(one.dek, two.dek);
}

pub async fn a_blob_is_at_most_eight_kibibytes(bench: &dyn Bench) {
    let wrapped = wrap(&*bench.kek()).await.unwrap();
    assert!((33..=8192).contains(&wrapped.dek.as_bytes().len()), "{} bytes", wrapped.dek.as_bytes().len());
    let blob = wrapped.dek.as_bytes();
    assert!(!blob.windows(8).any(|w| w == &CANARY_DEK[..8]), "the DEK stands in its own blob");
}

pub async fn another_context_is_rejected(bench: &dyn Bench) {
    let kek = bench.kek();
    let wrapped = wrap(&*kek).await.unwrap();
    for other in [context("test"), context(""), kube_kms_core::context::WrapContext::new([].into())] {
        let fault = kek.unwrap_dek(&wrapped.kek, &wrapped.dek, &other, &call()).await.unwrap_err();
        assert_eq!(fault.reason(), Reason::WrappedDekRejected);
    }
    unwrap(&*kek, &wrapped).await.unwrap();
}

pub async fn another_kek_is_rejected(bench: &dyn Bench) {
    let (kek, other) = (bench.kek(), bench.other());
    let (ours, theirs) = (wrap(&*kek).await.unwrap(), wrap(&*other).await.unwrap());
    // Their blob under our name, and ours under theirs: whoever writes to etcd can try both.
    for (kek, blob, name) in [(&kek, &theirs, &ours), (&other, &ours, &theirs)] {
        let mixed = Wrapped { dek: blob.dek.clone(), kek: name.kek.clone() };
        let fault = unwrap(&**kek, &mixed).await.unwrap_err();
        assert_eq!(fault.reason(), Reason::WrappedDekRejected, "{}", fault.causes());
    }
    // A kind that is not this provider's at all.
    let foreign = KekRef::parse(format!("nobody:{}", ours.kek.identity()).as_bytes()).unwrap();
    let fault = unwrap(&*kek, &Wrapped { dek: ours.dek.clone(), kek: foreign }).await.unwrap_err();
    assert!(matches!(fault.reason(), Reason::WrappedDekRejected | Reason::KekNotConfigured), "{fault}");
}

pub async fn an_empty_blob_cannot_be_asked_for(bench: &dyn Bench) {
    // Not a matter of the provider: the type has no such value.
    assert_eq!(WrappedDek::parse(Vec::new()).unwrap_err().reason(), Reason::AnnotationInvalid);
    // The nearest to it that there is.
    let kek = bench.kek();
    let wrapped = wrap(&*kek).await.unwrap();
    for blob in [vec![0], vec![1], vec![0; 8192]] {
        let fault = unwrap(&*kek, &with_blob(&wrapped, blob)).await.unwrap_err();
        assert_eq!(fault.reason(), Reason::WrappedDekRejected, "{}", fault.causes());
    }
}

pub async fn each_flipped_byte_is_rejected(bench: &dyn Bench) {
    let kek = bench.kek();
    let wrapped = wrap(&*kek).await.unwrap();
    for at in 0..wrapped.dek.as_bytes().len() {
        let mut blob = wrapped.dek.as_bytes().to_vec();
        blob[at] ^= 1 << (at % 8);
        let fault = unwrap(&*kek, &with_blob(&wrapped, blob)).await.unwrap_err();
        assert_eq!(fault.reason(), Reason::WrappedDekRejected, "byte {at}: {}", fault.causes());
    }
    unwrap(&*kek, &wrapped).await.unwrap();
}

pub async fn each_shorter_blob_is_rejected(bench: &dyn Bench) {
    let kek = bench.kek();
    let wrapped = wrap(&*kek).await.unwrap();
    let blob = wrapped.dek.as_bytes();
    for len in 1..blob.len() {
        let fault = unwrap(&*kek, &with_blob(&wrapped, blob[..len].to_vec())).await.unwrap_err();
        assert_eq!(fault.reason(), Reason::WrappedDekRejected, "{len} bytes: {}", fault.causes());
    }
    let longer = unwrap(&*kek, &with_blob(&wrapped, [blob, &[0]].concat())).await.unwrap_err();
    assert_eq!(longer.reason(), Reason::WrappedDekRejected, "one more: {}", longer.causes());
    unwrap(&*kek, &wrapped).await.unwrap();
}

pub async fn sixty_four_calls_at_once_each_get_their_own_answer(bench: &dyn Bench) {
    let kek = bench.kek();
    let (kek, prod, time) = (&*kek, &context("prod"), &call());
    join_all((0..64_u8).map(|n| async move {
        let own = dek(&[n; 32]);
        let wrapped = kek.wrap_dek(&own, prod, time).await.unwrap();
        let back = kek.unwrap_dek(&wrapped.kek, &wrapped.dek, prod, time).await.unwrap();
        assert!(back.dek.same_as(&own), "call {n} got another's DEK");
    }))
    .await;
}

pub async fn a_dropped_call_does_no_harm(bench: &dyn Bench) {
    let kek = bench.kek();
    let wrapped = wrap(&*kek).await.unwrap();
    for polls in 0..6 {
        let mut both = std::pin::pin!(join(wrap(&*kek), unwrap(&*kek, &wrapped)));
        for _ in 0..polls {
            tokio::select! {
                biased;
                _ = &mut both => break,
                () = tokio::task::yield_now() => {}
            }
        }
    }
    assert_well(&*kek).await;
    unwrap(&*kek, &wrapped).await.unwrap();
}

pub async fn may_unwrap_answers_without_a_call(bench: &dyn Bench) {
    let kek = bench.kek();
    let ours = wrap(&*kek).await.unwrap().kek;
    let foreign = KekRef::parse(format!("nobody:{}", ours.identity()).as_bytes()).unwrap();
    let calls = bench.calls();
    for _ in 0..3 {
        assert!(kek.may_unwrap(&ours) && !kek.may_unwrap(&foreign));
        // Before it has ever made a call, or nothing could be read after a start in an outage.
        assert!(bench.kek().may_unwrap(&ours) && !bench.kek().may_unwrap(&foreign));
    }
    assert_eq!(bench.calls(), calls, "it asked the KMS");
}

pub async fn the_version_changes_with_a_rotation_and_old_blobs_keep_theirs(bench: &dyn Bench) {
    let kek = bench.kek();
    let mut known = Vec::new();
    for round in 0..3 {
        if round > 0 {
            bench.rotate();
        }
        for _ in 0..2 {
            let wrapped = wrap(&*kek).await.unwrap();
            let version = unwrap(&*kek, &wrapped).await.unwrap().version;
            known.push((round, wrapped, version));
        }
    }
    for (round, wrapped, version) in &known {
        for (other_round, _, other) in &known {
            assert_eq!(round == other_round, version == other, "rotations {round} and {other_round}");
        }
        assert_eq!(wrapped.kek, known[0].1.kek, "a rotation is not another KEK");
        for kek in [&kek, &bench.kek()] {
            let back = unwrap(&**kek, wrapped).await.unwrap();
            assert!(back.dek.same_as(&dek(CANARY_DEK)));
            assert_eq!(back.version, *version, "a blob reports the version of today, not its own");
        }
    }
}

/// How a wrap and an unwrap fail now.
async fn faults(kek: &dyn Kek, wrapped: &Wrapped) -> [Fault; 2] {
    [wrap(kek).await.unwrap_err(), unwrap(kek, wrapped).await.unwrap_err()]
}

pub async fn a_slow_kms_is_a_deadline_in_time(bench: &dyn Bench) {
    let kek = bench.kek();
    let wrapped = wrap(&*kek).await.unwrap();
    bench.slow();
    let short = KekCall { timeout: Duration::from_millis(250), uid: None };
    let (own, prod) = (dek(CANARY_DEK), context("prod"));
    for what in ["wrap", "unwrap"] {
        let began = Instant::now();
        let calling = async {
            let fault = if what == "wrap" {
                kek.wrap_dek(&own, &prod, &short).await.unwrap_err()
            } else {
                kek.unwrap_dek(&wrapped.kek, &wrapped.dek, &prod, &short).await.unwrap_err()
            };
            (fault, began.elapsed())
        };
        // A timer of the same length on the same runtime: as late as the machine makes it.
        let timer = async {
            tokio::time::sleep(short.timeout).await;
            began.elapsed()
        };
        let ((fault, took), timer) = tokio::join!(calling, timer);
        assert_eq!((fault.reason(), fault.class()), (Reason::Deadline, Class::TooSlow), "{what}");
        // What it must not be is another timeout of somebody else's.
        let soon = short.timeout..timer + Duration::from_millis(700);
        assert!(soon.contains(&took), "{what} took {took:?}, a timer {timer:?}");
    }
    bench.heal();
    assert_well(&*kek).await;
}

pub async fn a_call_that_is_dropped_while_it_waits_does_no_harm(bench: &dyn Bench) {
    let kek = bench.kek();
    let wrapped = wrap(&*kek).await.unwrap();
    bench.slow();
    for _ in 0..3 {
        let soon = Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, wrap(&*kek)).await.is_err(), "it was not slow");
        assert!(tokio::time::timeout(soon, unwrap(&*kek, &wrapped)).await.is_err(), "it was not slow");
    }
    bench.heal();
    assert_well(&*kek).await;
    unwrap(&*kek, &wrapped).await.unwrap();
}

pub async fn an_unreachable_kms_is_transient(bench: &dyn Bench) {
    let kek = bench.kek();
    let wrapped = wrap(&*kek).await.unwrap();
    bench.unreachable();
    for kek in [&kek, &bench.kek()] {
        for fault in faults(&**kek, &wrapped).await {
            assert_eq!(fault.reason(), Reason::KmsUnreachable, "{}", fault.causes());
            assert!(fault.class().is_transient() && !fault.causes().is_empty());
        }
        assert!(kek.may_unwrap(&wrapped.kek), "an outage would make it forget what it may read");
    }
    bench.heal();
    assert_well(&*kek).await;
    unwrap(&*kek, &wrapped).await.unwrap();
}

pub async fn a_denial_is_a_denial(bench: &dyn Bench) {
    let kek = bench.kek();
    let wrapped = wrap(&*kek).await.unwrap();
    bench.denied();
    for fault in faults(&*kek, &wrapped).await {
        assert_eq!(fault.class(), Class::KekDenied, "{fault}: {}", fault.causes());
        assert!(!fault.causes().is_empty(), "the operator learns nothing");
    }
    bench.heal();
    assert_well(&*kek).await;
    unwrap(&*kek, &wrapped).await.unwrap();
}

pub async fn a_disabled_kek_is_dead(bench: &dyn Bench) {
    let kek = bench.kek();
    let wrapped = wrap(&*kek).await.unwrap();
    bench.disabled();
    let fault = unwrap(&*kek, &wrapped).await.unwrap_err();
    assert_eq!((fault.reason(), fault.class()), (Reason::KekDisabled, Class::KekDead), "{}", fault.causes());
    match wrap(&*kek).await {
        Ok(_) => assert!(!bench.disabled_ends_wraps(), "a disabled KEK wraps"),
        Err(fault) => {
            assert!(bench.disabled_ends_wraps());
            assert_eq!(fault.reason(), Reason::KekDisabled);
        }
    }
    // A damaged blob says nothing of the KEK's state, or whoever writes to etcd could have it revoked.
    let mut blob = wrapped.dek.as_bytes().to_vec();
    *blob.last_mut().unwrap() ^= 1;
    if !bench.disabled_ends_wraps() {
        let fault = unwrap(&*kek, &with_blob(&wrapped, blob)).await.unwrap_err();
        assert_eq!(fault.reason(), Reason::WrappedDekRejected);
    }
    bench.heal();
    assert_well(&*kek).await;
    unwrap(&*kek, &wrapped).await.unwrap();
}

pub async fn a_restart_in_between_is_got_over(bench: &dyn Bench) {
    let kek = bench.kek();
    let wrapped = wrap(&*kek).await.unwrap();
    for _ in 0..3 {
        bench.restart();
        // Connections that the restart has cut may each cost one transient answer, and no more.
        let mut left = 4;
        loop {
            match unwrap(&*kek, &wrapped).await {
                Ok(back) => break assert!(back.dek.same_as(&dek(CANARY_DEK))),
                Err(fault) if left > 0 => assert!(fault.class().is_transient(), "{fault}: {}", fault.causes()),
                Err(fault) => panic!("it does not get over a restart: {fault}: {}", fault.causes()),
            }
            left -= 1;
        }
        assert_well(&*kek).await;
    }
}

pub async fn nothing_secret_is_printed(bench: &dyn Bench) {
    let kek = bench.kek();
    let mut canaries = vec![Canary::new("the DEK", CANARY_DEK)];
    canaries.extend(bench.secrets().iter().map(|secret| Canary::new("a secret of the provider", secret)));
    let mut shown = vec![format!("{kek:?} {:#?} {:?}", kek, dek(CANARY_DEK))];
    let show = |fault: &Fault| format!("{fault} {fault:?} {fault:#?} {}", fault.causes());
    let wrapped = wrap(&*kek).await.unwrap();
    shown.push(format!("{wrapped:?} {:?} {kek:?}", unwrap(&*kek, &wrapped).await.unwrap()));
    let elsewhere = kek.unwrap_dek(&wrapped.kek, &wrapped.dek, &context("test"), &call()).await.unwrap_err();
    shown.push(show(&elsewhere));
    let breakers: [fn(&dyn Bench); 3] = [|b| b.unreachable(), |b| b.denied(), |b| b.disabled()];
    for break_it in breakers {
        break_it(bench);
        shown.push(show(&unwrap(&*kek, &wrapped).await.unwrap_err()));
        shown.extend(wrap(&*kek).await.err().as_ref().map(show));
        bench.heal();
    }
    for text in shown {
        canary::assert_none(&canaries, "what is printed", text.as_bytes());
    }
}
