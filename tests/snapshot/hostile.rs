//! Files that somebody made to hurt: each ends in an error that says what is wrong and where, and no bit that is flipped
//! makes the reader panic, hang or take memory.

use super::{on_disk, open, read};
use crate::support::bolt_file::{
    BoltFile, Element, PAGE, bucket, hashed, inline, meta_page, plain, put, revision, tombstone,
};
use kube_kms_etcd::snapshot::{SnapshotError, Unhashed};
use proptest::prelude::*;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

fn elements(n: u64) -> Vec<Element> {
    (0..n).map(|i| put(i + 2, 0, format!("/k{i}").as_bytes(), &[b'v'; 50])).collect()
}

/// A file with a tree of 40 keys on 5 leaves (pages 3 to 7) under a branch (page 8), and the root leaf (page 9).
fn sound() -> BoltFile {
    let mut file = BoltFile::new();
    let tree = file.tree(&elements(40), 8);
    assert_eq!(tree, 8);
    assert_eq!(file.leaf(&[bucket(b"key", tree), inline(b"meta", &[])]), 9);
    file
}

/// The error, in full.
fn refused(bytes: &[u8]) -> String {
    let error = read(bytes).expect_err("a damaged file was read");
    assert!(!error.hint().is_empty());
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn poked(page: u64, at: usize, bytes: &[u8]) -> String {
    let mut file = sound();
    file.poke(page, at, bytes);
    refused(&file.finish(9))
}

#[test]
fn the_file_that_is_damaged_below_is_sound() {
    assert_eq!(read(&sound().finish(9)).unwrap().0.len(), 40);
}

#[test]
fn each_damage_is_named_with_its_page() {
    let word = |n: u32| n.to_le_bytes();
    // The header: id, flags, count, overflow.
    assert_eq!(poked(5, 0, &[6]), "page 5: it says that it is another page");
    assert_eq!(poked(5, 8, &[0x10]), "page 5: it is neither a branch nor a leaf");
    assert_eq!(poked(5, 8, &[0x03]), "page 5: it is neither a branch nor a leaf");
    assert_eq!(poked(5, 10, &[0xff, 0xff]), "page 5: it has more elements than fit");
    assert_eq!(poked(8, 10, &[0, 0]), "page 8: it is a branch without children");
    assert_eq!(poked(5, 12, &word(5)), "page 5: it continues beyond the end of the database");
    assert_eq!(poked(5, 12, &word(u32::MAX)), "page 5: it continues beyond the end of the database");
    // It continues into a page that has been read.
    assert_eq!(poked(5, 12, &word(1)), "page 6: it is in the tree twice");
    // The table of a leaf: flags, pos, ksize, vsize.
    assert_eq!(poked(5, 16, &word(1)), "page 5, entry 0: it is a bucket among revisions");
    assert_eq!(poked(5, 20, &word(0)), "page 5, entry 0: it lies outside its page");
    assert_eq!(poked(5, 20, &word(u32::MAX)), "page 5, entry 0: it lies outside its page");
    assert_eq!(poked(5, 24, &word(u32::MAX)), "page 5, entry 0: it lies outside its page");
    assert_eq!(poked(5, 28, &word(u32::MAX)), "page 5, entry 0: it lies outside its page");
    assert_eq!(poked(5, 28, &word(3000)), "page 5, entry 0: it overlaps the next one");
    assert_eq!(poked(5, 24, &word(16)), "page 5, entry 0: its key is no revision");
    assert_eq!(poked(5, 28, &word(20)), "page 5, entry 0: its value is no mvccpb.KeyValue");
    // The children of a branch: pos, ksize, pgid.
    assert_eq!(poked(8, 16 + 16 + 8, &word(8)), "page 8: it is in the tree twice");
    assert_eq!(poked(8, 16 + 16 + 8, &word(5)), "page 5: it is in the tree twice");
    assert_eq!(poked(8, 16 + 16 + 8, &word(0)), "page 0: it is outside the database");
    assert_eq!(poked(8, 16 + 16 + 8, &word(10)), "page 10: it is outside the database");
    assert_eq!(poked(8, 16 + 16 + 8, &[0xff; 8]), format!("page {}: it is outside the database", u64::MAX));
    assert_eq!(poked(8, 16 + 16 + 8, &word(2)), "page 2: it is neither a branch nor a leaf");
    // Two children change places.
    let swapped = [&word(4)[..], &[0; 4], &[0; 8], &word(3)].concat();
    assert_eq!(poked(8, 16 + 8, &swapped), "page 4, entry 7: its key is not in order");
}

#[test]
fn buckets_that_are_none_are_refused() {
    let root = |elements: &[Element]| {
        let mut file = BoltFile::new();
        let root = file.leaf(elements);
        refused(&file.finish(root))
    };
    assert_eq!(root(&[(b"key".to_vec(), vec![0; 7], true)]), "page 3, entry 0: it is a bucket without a root");
    assert_eq!(root(&[(b"key".to_vec(), vec![0; 15], true)]), "page 3, entry 0: it is a bucket without a page");
    assert_eq!(root(&[(b"key".to_vec(), vec![0; 20], true)]), "page 0: it is shorter than its header");
    let mut branch = inline(b"key", &elements(1));
    branch.1[16 + 8] = 0x01;
    assert_eq!(root(&[branch]), "page 0, entry 0: an inline bucket has no branches");
    assert_eq!(root(&[inline(b"auth", &[])]), "it is a bbolt database without etcd's bucket of revisions");
    assert_eq!(root(&[bucket(b"key", 3)]), "page 3, entry 0: its key is no revision");
    assert_eq!(root(&[plain(b"b", b""), plain(b"a", b"")]), "page 3, entry 0: its key is not in order");
    assert_eq!(root(&[plain(b"a", b""), plain(b"a", b"")]), "page 3, entry 0: its key is not in order");
    let odd = inline(b"key", &[plain(b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0x", b"")]);
    assert_eq!(root(&[odd]), "page 0, entry 0: its key is no revision");
}

#[test]
fn a_tree_deeper_than_any_is_refused() {
    let mut file = BoltFile::new();
    let mut page = file.leaf(&elements(1));
    for _ in 0..70 {
        page = file.branch(&[(revision(2, 0), page)]);
    }
    let root = file.leaf(&[bucket(b"key", page)]);
    assert!(refused(&file.finish(root)).ends_with("the tree is too deep"));
}

/// Without the check of overlaps, this is 65,000 keys over the same megabyte, compared with each other byte by byte.
#[test]
fn many_keys_over_the_same_bytes_are_not_compared_for_hours() {
    const KEYS: u32 = 65_000;
    let mut file = BoltFile::new();
    let big = file.leaf(&[plain(&[0; 3 << 20], b"")]);
    file.poke(big, 10, &u16::try_from(KEYS).unwrap().to_le_bytes());
    for i in 0..KEYS {
        let pos = (KEYS - i) * 16;
        let element = [[0; 4], pos.to_le_bytes(), (1_900_000 + i).to_le_bytes(), [0; 4]].concat();
        file.poke(big, 16 + i as usize * 16, &element);
    }
    let began = Instant::now();
    assert_eq!(refused(&file.finish(big)), "page 3, entry 64998: it overlaps the next one");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn meta_pages_that_lie_are_refused() {
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = sound().finish(9);
        for at in [0, PAGE] {
            let mut page = bytes[at..at + 80].to_vec();
            change(&mut page);
            let sum = crate::support::bolt_file::checksum(&page[16..72]);
            page[72..80].copy_from_slice(&sum.to_le_bytes());
            bytes[at..at + 80].copy_from_slice(&page);
        }
        refused(&bytes)
    };
    let is = "it is no bbolt database that can be read here: ";
    let magic = "its first page is no meta page of a little-endian machine";
    assert_eq!(with(&|page| page[16..20].reverse()), format!("{is}{magic}"));
    assert_eq!(with(&|page| page[20] = 3), format!("{is}its format version is not 2"));
    assert_eq!(with(&|page| page[24..28].fill(0)), format!("{is}its page size is none"));
    assert_eq!(with(&|page| page[24..28].fill(0xff)), format!("{is}its page size is none"));
    assert_eq!(
        with(&|page| page[56..64].copy_from_slice(&meta_page(0, 1 << 60, 0)[56..64])),
        format!("its {} pages of 4096 bytes do not fit into its 40960 bytes: it is cut short", 1_u64 << 60)
    );
    assert_eq!(with(&|page| page[32..40].fill(0)), "page 0: it is outside the database");
    let mut bytes = sound().finish(9);
    bytes[20] ^= 1;
    bytes[PAGE + 20] ^= 1;
    assert_eq!(refused(&bytes), format!("{is}its format version is not 2"));
    bytes[20] ^= 1;
    bytes[40] ^= 1;
    assert_eq!(refused(&bytes), format!("{is}the checksum of its meta page is wrong"));
    assert_eq!(refused(&[0; 512]), format!("{is}{magic}"));
}

#[test]
fn a_file_that_is_cut_altered_or_no_file_is_refused_with_what_to_do() {
    let bytes = hashed(sound().finish(9));
    let refuse = |bytes: &[u8], unhashed| {
        let file = on_disk(bytes);
        open(file.path(), unhashed).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert_eq!(refuse(&bytes, Unhashed::Refuse), "");
    // Any one byte, the hash's own included.
    for at in [0, 16, 5000, PAGE * 9, bytes.len() - 33, bytes.len() - 32, bytes.len() - 1] {
        let mut altered = bytes.clone();
        altered[at] ^= 0x40;
        let said = refuse(&altered, Unhashed::Accept);
        assert_eq!(said, "the SHA-256 at its end is not that of its content: it is damaged or was altered", "{at}");
    }
    let without = "it ends without the SHA-256 that `etcdctl snapshot save` appends";
    assert_eq!(refuse(&bytes[..PAGE * 10], Unhashed::Refuse), without);
    assert_eq!(refuse(&bytes[..PAGE * 5], Unhashed::Refuse), without);
    assert!(refuse(&bytes[..PAGE * 5], Unhashed::Accept).ends_with("it is cut short"));
    for cut in [0, 31, 32, 33, PAGE * 5 + 7, bytes.len() - 1] {
        let said = refuse(&bytes[..cut], Unhashed::Accept);
        assert!(said.starts_with(&format!("{cut} bytes are neither a database")), "{said}");
    }
    // Cut so that 32 bytes are left over: taken for the hash, which they are not.
    assert!(refuse(&bytes[..PAGE * 5 + 32], Unhashed::Accept).starts_with("the SHA-256"));
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(open(dir.path(), Unhashed::Refuse), Err(SnapshotError::NotRegular)));
    assert!(matches!(open(Path::new("/dev/zero"), Unhashed::Refuse), Err(SnapshotError::NotRegular)));
    assert!(matches!(open(&dir.path().join("none"), Unhashed::Refuse), Err(SnapshotError::Read(_))));
    let pipe = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    assert!(matches!(open(&pipe, Unhashed::Refuse), Err(SnapshotError::NotRegular)));
}

#[test]
fn no_error_shows_what_is_stored() {
    let mut file = BoltFile::new();
    let secret = b"canary-in-the-clear";
    let mut wrong = put(2, 0, secret, secret);
    wrong.1[0] = 0xff;
    let root = file.leaf(&[inline(b"key", &[wrong, tombstone(3, 0, secret)])]);
    let error = read(&file.finish(root)).unwrap_err();
    assert!(!format!("{error} {error:?} {}", error.hint()).contains("canary"));
}

/// Reads it all and forgets the result: what counts is that there is one, soon.
fn survives(bytes: &[u8]) {
    let began = Instant::now();
    let _ = read(bytes);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// Flips bits and overwrites words; interesting places are as likely as all others together.
pub(super) fn damaged(sound: &[u8], damage: &[(u32, u8, u64)]) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for &(place, kind, word) in damage {
        let place = place as usize % bytes.len();
        // Headers and tables are at the beginning of pages.
        let at = if kind & 1 == 0 { place } else { place / PAGE * PAGE + place % 128 };
        let wide = usize::from(kind >> 1 & 7);
        for (i, byte) in word.to_le_bytes().into_iter().enumerate().take(wide) {
            if let Some(to) = bytes.get_mut(at + i) {
                *to = byte;
            }
        }
        if wide == 0 {
            bytes[at] ^= 1 << (word & 7);
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn no_damage_makes_the_reader_panic_or_hang(
        damage in proptest::collection::vec((any::<u32>(), any::<u8>(), prop_oneof![0_u64..12, any::<u64>()]), 1..12),
    ) {
        survives(&damaged(&sound().finish(9), &damage));
    }

    #[test]
    fn noise_behind_sound_headers_makes_no_panic(
        pages in proptest::collection::vec((any::<bool>(), 0_u16..40, 0_u32..2, table()), 4),
    ) {
        let mut file = BoltFile::new();
        let names = ["key", "meta"].map(|name| bucket(name.as_bytes(), 4));
        file.leaf(&names);
        for _ in &pages {
            file.leaf(&elements(20));
        }
        for (page, (is_leaf, count, more, table)) in (4..).zip(&pages) {
            file.poke(page, 8, &[1 + u8::from(*is_leaf), 0]);
            file.poke(page, 10, &count.to_le_bytes());
            file.poke(page, 12, &more.to_le_bytes());
            let table: Vec<u8> = table.iter().flat_map(|word| word.to_le_bytes()).collect();
            file.poke(page, 16, &table);
        }
        survives(&file.finish(3));
    }
}

/// The first elements of a page: small numbers, which may be right, and any others.
fn table() -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(prop_oneof![0_u32..9, 0_u32..800, any::<u32>()], 0..64)
}
