//! Of the whole module, by way of [`Locked`]. A test that must know who else is on a page has a size of its own.

use super::*;
use proptest::prelude::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::rc::Rc;

/// What a key schedule of AES-256-GCM takes, about.
const SCHEDULE: usize = 1120;

fn address<T>(locked: &Locked<T>) -> usize {
    std::ptr::from_ref::<T>(locked).addr()
}

/// What is at this address, whether anybody owns it or not.
fn read(address: usize, len: usize) -> std::io::Result<Vec<u8>> {
    let mut found = vec![0xEE; len];
    std::fs::File::open("/proc/self/mem").unwrap().read_exact_at(&mut found, address as u64)?;
    Ok(found)
}

fn filled<const N: usize>(byte: u8) -> Locked<[u8; N]> {
    Locked::new(|| [byte; N]).unwrap()
}

/// The flags of the mapping with this address. SPEC: proc(5), smaps.
fn flags(address: usize) -> String {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    let mut flags = None;
    for line in smaps.lines() {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        let hex = |text| usize::from_str_radix(text, 16).ok();
        if let Some((Some(from), Some(to))) = range.map(|(from, to)| (hex(from), hex(to))) {
            inside = (from..to).contains(&address);
        }
        if inside && line.starts_with("VmFlags:") {
            flags = Some(line.to_owned());
        }
    }
    flags.expect("the mapping is in smaps")
}

#[test]
fn the_value_is_there_can_be_changed_and_is_dropped_once() {
    struct Counts(Rc<Cell<u32>>, [u8; 5000]);
    impl Drop for Counts {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    let drops = Rc::new(Cell::new(0));
    let mut locked = Locked::new(|| Counts(Rc::clone(&drops), [7; 5000])).unwrap();
    locked.1[4999] = 9;
    assert_eq!((locked.1[0], locked.1[4999]), (7, 9));
    assert_eq!(drops.get(), 0);
    drop(locked);
    assert_eq!(drops.get(), 1);
}

#[test]
fn debug_prints_no_content() {
    let locked = Locked::new(|| [0xAB_u8; 32]).unwrap();
    assert_eq!(format!("{locked:?}"), "Locked(secret)");
}

#[test]
fn the_pages_are_locked_and_left_out_of_dumps_whoever_has_come_and_gone() {
    let mut all: Vec<_> = (0..200).map(filled::<1000>).collect();
    let mut nth = 0;
    all.retain(|_| {
        nth += 1;
        nth % 3 == 0
    });
    all.extend((0..100).map(filled::<1000>));
    let large = filled::<9000>(1);
    for address in all.iter().map(address).chain([address(&large), address(&large) + 8999]) {
        let flags = flags(address);
        assert!(flags.contains(" lo") && flags.contains(" dd") && flags.contains(" dc"), "{flags}");
    }
    assert!(locked_bytes() >= 166 * 1000 + 9000);
}

#[test]
fn a_value_that_is_never_built_is_not_dropped_and_gives_its_place_back() {
    type Drops = ([u8; 900], Box<u8>);
    let new = |n: u8| Locked::<Drops>::new(|| ([n; 900], Box::new(n))).unwrap();
    let beside = new(1);
    let built = std::panic::catch_unwind(|| Locked::<Drops>::new(|| panic!("as it should")).is_ok());
    assert!(built.is_err());
    let next = new(2);
    assert_eq!(address(&next) - address(&beside), 960, "the place behind the first one is free");
    assert_eq!((*beside.1, *next.1), (1, 2));
}

#[test]
fn every_alignment_is_kept() {
    #[repr(align(64))]
    struct Line([u8; 3]);
    #[repr(align(512))]
    struct Sector([u8; 3]);
    #[repr(align(4096))]
    struct Page([u8; 3]);
    let held: Vec<_> = (0..50)
        .map(|n| {
            (
                Locked::new(|| Line([n; 3])).unwrap(),
                Locked::new(|| Sector([n; 3])).unwrap(),
                Locked::new(|| Page([n; 3])).unwrap(),
                Locked::new(|| (u128::from(n), n)).unwrap(),
                Locked::new(|| ()).unwrap(),
            )
        })
        .collect();
    for (n, (line, sector, page, wide, _)) in (0..).zip(&held) {
        assert_eq!(address(line) % 64 + address(sector) % 512 + address(page) % 4096 + address(wide) % 16, 0);
        assert_eq!((line.0, sector.0, page.0, **wide), ([n; 3], [n; 3], [n; 3], (u128::from(n), n)));
    }
}

#[test]
fn a_freed_slot_is_wiped_at_once_and_is_the_next_one_to_be_taken() {
    const LEN: usize = 820;
    let mut held: Vec<_> = (0..40).map(|_| filled::<LEN>(0xA5)).collect();
    let mut free = BTreeSet::new();
    for n in (0..20).rev() {
        let freed = held.remove(n * 2);
        let address = address(&freed);
        assert_eq!(read(address, LEN).unwrap(), [0xA5; LEN]);
        drop(freed);
        // A page that nobody is on any more is not there any more.
        if let Ok(left) = read(address, LEN) {
            assert_eq!(left, [0; LEN], "slot {n}");
            free.insert(address);
        }
    }
    assert!(free.len() > 10, "most are on pages with others");
    let again: Vec<_> = (0..free.len()).map(|_| filled::<LEN>(0x5A)).collect();
    assert_eq!(again.iter().map(address).collect::<BTreeSet<_>>(), free, "no new page while there are free slots");
    assert!(held.iter().all(|value| **value == [0xA5; LEN]) && again.iter().all(|value| **value == [0x5A; LEN]));
}

#[test]
fn those_of_the_fullest_page_are_taken_first_so_that_others_become_empty() {
    const LEN: usize = 1300;
    // Three on the first page, three on the second.
    let mut held: Vec<_> = (0..6).map(|_| filled::<LEN>(1)).collect();
    let page = |value: &Locked<[u8; LEN]>| address(value) / 4096;
    let (full, sparse) = (page(&held[0]), page(&held[3]));
    assert_eq!(held.iter().filter(|value| page(value) == full).count(), 3);
    held.drain(3..5);
    held.remove(0);
    let next = filled::<LEN>(2);
    assert_eq!((page(&next), page(&held[2])), (full, sparse));
}

/// Values of every kind of size: less than a line, a key, a key schedule, half a page and a little more, pages.
enum Value {
    Byte(Locked<[u8; 1]>),
    Key(Locked<[u8; 32]>),
    Schedule(Locked<[u8; SCHEDULE]>),
    Half(Locked<[u8; 2048]>),
    More(Locked<[u8; 2049]>),
    Pages(Locked<[u8; 9000]>),
}

impl Value {
    fn new(kind: u8, byte: u8) -> Self {
        match kind {
            0 => Self::Byte(filled(byte)),
            1 => Self::Key(filled(byte)),
            2 => Self::Schedule(filled(byte)),
            3 => Self::Half(filled(byte)),
            4 => Self::More(filled(byte)),
            _ => Self::Pages(filled(byte)),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Byte(value) => &**value,
            Self::Key(value) => &**value,
            Self::Schedule(value) => &**value,
            Self::Half(value) => &**value,
            Self::More(value) => &**value,
            Self::Pages(value) => &**value,
        }
    }
}

/// No two share a byte, and each holds what was put there.
fn assert_apart(values: &[(u8, Value)]) {
    let mut ranges: Vec<_> = values
        .iter()
        .map(|(byte, value)| {
            let bytes = value.bytes();
            assert!(bytes.iter().all(|b| b == byte), "{} bytes of {byte}", bytes.len());
            (bytes.as_ptr().addr(), bytes.len())
        })
        .collect();
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "two values overlap");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn values_keep_apart_however_they_come_and_go(
        steps in prop::collection::vec((0_u8..6, any::<u8>(), any::<prop::sample::Index>(), 0_u8..100), 1..1500),
    ) {
        let mut values = Vec::new();
        for (n, (kind, byte, which, dice)) in steps.into_iter().enumerate() {
            if dice < 45 && !values.is_empty() {
                values.swap_remove(which.index(values.len()));
            } else {
                values.push((byte, Value::new(kind, byte)));
            }
            if n % 100 == 0 {
                assert_apart(&values);
            }
        }
        assert_apart(&values);
    }
}

#[test]
fn threads_that_take_and_free_at_once_keep_apart() {
    let run = |seed: u8| {
        let mut values = std::collections::VecDeque::new();
        for n in 0..2000_u32 {
            let byte = seed.wrapping_add(u8::try_from(n % 199).unwrap());
            values.push_back((byte, Value::new(u8::try_from(n % 4).unwrap(), byte)));
            if n % 7 > 2 {
                let (byte, value) = values.pop_front().unwrap();
                assert!(value.bytes().iter().all(|b| *b == byte));
            }
        }
        values
    };
    let all: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || run(n * 31))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    // Freed by another thread than the one that took them.
    assert_apart(&all);
}

/// Runs an ignored test of this file in a process of its own: the figures and the limits are the whole process's.
fn in_a_child(test: &str) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args([&format!("tests::{test}"), "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn many_values_take_little_more_than_their_bytes_and_all_pages_are_given_back() {
    in_a_child("child_with_many_values");
}

/// What the kernel says is locked.
fn vm_lck() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
#[ignore = "run as a child process: the figures are the whole process's"]
fn child_with_many_values() {
    assert_eq!((locked_bytes(), unlocked_bytes(), vm_lck()), (0, 0, 0));
    let one = filled::<SCHEDULE>(1);
    assert_eq!((locked_bytes(), vm_lck()), (4096, 4096), "one value takes one page");
    let mut values: Vec<_> = (0..=255).cycle().take(4096).map(filled::<SCHEDULE>).collect();
    let each = locked_bytes() / 4097;
    println!("{each} bytes for each of {SCHEDULE}");
    assert!(each < SCHEDULE * 11 / 10, "{each}");
    assert_eq!((locked_bytes(), unlocked_bytes()), (vm_lck(), 0));
    // In no particular order.
    for step in [7, 5, 3, 2, 1] {
        let mut n = 0;
        values.retain(|_| {
            n += 1;
            n % step != 0
        });
        assert_eq!((locked_bytes(), unlocked_bytes()), (vm_lck(), 0));
    }
    assert!(values.is_empty());
    assert_eq!((locked_bytes(), vm_lck()), (4096, 4096), "what is left is the page of the one");
    drop(one);
    assert_eq!((locked_bytes(), unlocked_bytes(), vm_lck()), (0, 0, 0));
}

#[test]
fn what_the_limit_leaves_is_used_and_what_it_refuses_is_told_and_tried_again() {
    in_a_child("child_with_a_limit");
}

#[test]
#[ignore = "run as a child process: its limit on locked memory is low"]
fn child_with_a_limit() {
    // What the steps of growth do not come out at.
    const LIMIT: usize = 13 * 4096;
    // Root may lock as much as it likes.
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, sets).unwrap();
    let limit = |bytes: usize| {
        setrlimit(Resource::Memlock, Rlimit { current: Some(bytes as u64), ..getrlimit(Resource::Memlock) }).unwrap();
    };
    limit(LIMIT);
    let mut values: Vec<_> = (0..100).map(filled::<SCHEDULE>).collect();
    assert_eq!(locked_bytes(), LIMIT, "the last page that the limit leaves is locked");
    assert!(unlocked_bytes() >= 40 * SCHEDULE && unlocked_bytes() < 100 * SCHEDULE, "{}", unlocked_bytes());
    assert!((0..).zip(&values).all(|(n, value)| **value == [n; SCHEDULE]));
    let is_locked = |value: &Locked<[u8; SCHEDULE]>| flags(address(value)).contains(" lo");
    let unlocked = values.iter().filter(|value| !is_locked(value)).count();
    assert_eq!(unlocked, 100 - (3 + 3 + 7 + 14 + 5 * 3), "steps of 1, 1, 2, 4 pages, and then one by one");
    assert!(values.iter().all(|value| flags(address(value)).contains(" dd")), "left out of dumps all the same");
    // A place on a locked page comes first, though others have been free for longer.
    drop(values.remove(97));
    // Two of them: by how full they are, the other page would be taken.
    drop(values.drain(..2));
    let next = filled::<SCHEDULE>(200);
    assert!(is_locked(&next));
    // Of another size: there is no page left for it.
    let other = filled::<32>(1);
    assert!(!flags(address(&other)).contains(" lo"));
    // With more to lock, a page that was refused is locked as soon as a value comes to it.
    limit(LIMIT + 4096);
    let beside = filled::<32>(2);
    assert!(flags(address(&beside)).contains(" lo") && flags(address(&other)).contains(" lo"));
    assert_eq!(locked_bytes(), LIMIT + 4096);
    drop((values, next, other, beside));
    assert_eq!((locked_bytes(), unlocked_bytes(), vm_lck()), (0, 0, 0));
}
