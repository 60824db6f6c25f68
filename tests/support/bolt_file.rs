//! bbolt files written by hand, sound and unsound, with what etcd puts into them.
//!
//! Guarantees: what is built without [`BoltFile::poke`] is a file that bbolt could have written (one entry behind the other,
//! both meta pages valid). SPEC: go.etcd.io/bbolt `internal/common/{page,meta}.go`; written from the format, not with the
//! reader's code.

use prost::Message;
use sha2::{Digest as _, Sha256};

pub const PAGE: usize = 4096;

/// Key, value, and whether it is a bucket.
pub type Element = (Vec<u8>, Vec<u8>, bool);

/// Pages being written. Pages 0 and 1 are the meta pages, page 2 the list of free ones.
#[derive(Clone)]
pub struct BoltFile {
    bytes: Vec<u8>,
}

/// `mvccpb.KeyValue`.
#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(int64, tag = "2")]
    create_revision: i64,
    #[prost(int64, tag = "3")]
    mod_revision: i64,
    #[prost(int64, tag = "4")]
    version: i64,
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
    #[prost(int64, tag = "6")]
    lease: i64,
}

/// The key of an entry of etcd's bucket `key`.
pub fn revision(main: u64, sub: u64) -> Vec<u8> {
    [&main.to_be_bytes()[..], b"_", &sub.to_be_bytes()].concat()
}

/// A write.
pub fn put(main: u64, sub: u64, key: &[u8], value: &[u8]) -> Element {
    let (key, value) = (key.to_vec(), value.to_vec());
    let (create_revision, mod_revision) = (main as i64, main as i64);
    let kv = KeyValue { key, create_revision, mod_revision, version: 1, value, lease: 77 };
    (revision(main, sub), kv.encode_to_vec(), false)
}

/// A deletion.
pub fn tombstone(main: u64, sub: u64, key: &[u8]) -> Element {
    let kv = KeyValue { key: key.to_vec(), ..Default::default() };
    ([revision(main, sub), b"t".to_vec()].concat(), kv.encode_to_vec(), false)
}

/// An entry of any bucket.
pub fn plain(key: &[u8], value: &[u8]) -> Element {
    (key.to_vec(), value.to_vec(), false)
}

/// A bucket with a page of its own.
pub fn bucket(name: &[u8], root: u64) -> Element {
    (name.to_vec(), [root.to_le_bytes(), [0; 8]].concat(), true)
}

/// A bucket inside its parent's page.
pub fn inline(name: &[u8], elements: &[Element]) -> Element {
    (name.to_vec(), [&[0; 16][..], &leaf_page(0, elements)].concat(), true)
}

/// The SHA-256 appended, as `etcdctl snapshot save` does.
pub fn hashed(mut bytes: Vec<u8>) -> Vec<u8> {
    let hash = Sha256::digest(&bytes);
    bytes.extend_from_slice(&hash);
    bytes
}

impl BoltFile {
    pub fn new() -> Self {
        let mut file = Self { bytes: vec![0; 2 * PAGE] };
        file.push(header(2, 0x10, 0));
        file
    }

    /// A leaf page, continued as far as needed.
    pub fn leaf(&mut self, elements: &[Element]) -> u64 {
        self.push(leaf_page(self.next(), elements))
    }

    /// A branch page over these children, each with its first key.
    pub fn branch(&mut self, children: &[(Vec<u8>, u64)]) -> u64 {
        let mut page = header(self.next(), 0x01, children.len());
        let mut data = Vec::new();
        for (i, (key, child)) in children.iter().enumerate() {
            let pos = (children.len() - i) * 16 + data.len();
            page.extend_from_slice(&(pos as u32).to_le_bytes());
            page.extend_from_slice(&(key.len() as u32).to_le_bytes());
            page.extend_from_slice(&child.to_le_bytes());
            data.extend_from_slice(key);
        }
        page.extend_from_slice(&data);
        self.push(page)
    }

    /// A tree of these elements, with so many on each leaf, over as many levels as it takes.
    pub fn tree(&mut self, elements: &[Element], on_a_page: usize) -> u64 {
        let first = |elements: &[Element]| elements[0].0.clone();
        let mut level: Vec<_> = elements.chunks(on_a_page).map(|part| (first(part), self.leaf(part))).collect();
        while level.len() > 1 {
            level = level.chunks(on_a_page).map(|part| (part[0].0.clone(), self.branch(part))).collect();
        }
        level.first().map_or_else(|| self.leaf(&[]), |(_, root)| *root)
    }

    /// The whole file, with this root page, as of transaction 7.
    pub fn finish(mut self, root: u64) -> Vec<u8> {
        let pages = self.next();
        for transaction in [6, 7] {
            let page = meta_page(root, pages, transaction);
            let at = usize::try_from(transaction % 2).unwrap() * PAGE;
            self.bytes[at..at + page.len()].copy_from_slice(&page);
        }
        self.bytes
    }

    /// Overwrites bytes of a page.
    pub fn poke(&mut self, page: u64, at: usize, bytes: &[u8]) {
        let at = usize::try_from(page).unwrap() * PAGE + at;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The number of the next page.
    pub fn next(&self) -> u64 {
        (self.bytes.len() / PAGE) as u64
    }

    fn push(&mut self, mut page: Vec<u8>) -> u64 {
        let id = self.next();
        let pages = page.len().div_ceil(PAGE).max(1);
        page.resize(pages * PAGE, 0);
        page[12..16].copy_from_slice(&(pages as u32 - 1).to_le_bytes());
        self.bytes.extend_from_slice(&page);
        id
    }
}

/// A meta page's first 80 bytes; its number is the transaction's last bit.
pub fn meta_page(root: u64, pages: u64, transaction: u64) -> Vec<u8> {
    let mut meta = Vec::new();
    for word in [0xED0C_DAED_u32, 2, PAGE as u32, 0] {
        meta.extend_from_slice(&word.to_le_bytes());
    }
    for word in [root, 0, 2, pages, transaction] {
        meta.extend_from_slice(&word.to_le_bytes());
    }
    meta.extend_from_slice(&checksum(&meta).to_le_bytes());
    [header(transaction % 2, 0x04, 0), meta].concat()
}

/// 64-bit FNV-1a.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

fn header(id: u64, flags: u16, count: usize) -> Vec<u8> {
    let count = u16::try_from(count).unwrap();
    [&id.to_le_bytes()[..], &flags.to_le_bytes(), &count.to_le_bytes(), &[0; 4]].concat()
}

fn leaf_page(id: u64, elements: &[Element]) -> Vec<u8> {
    let mut page = header(id, 0x02, elements.len());
    let mut data = Vec::new();
    for (i, (key, value, is_bucket)) in elements.iter().enumerate() {
        let pos = (elements.len() - i) * 16 + data.len();
        for word in [u32::from(*is_bucket), pos as u32, key.len() as u32, value.len() as u32] {
            page.extend_from_slice(&word.to_le_bytes());
        }
        data.extend_from_slice(key);
        data.extend_from_slice(value);
    }
    page.extend_from_slice(&data);
    page
}
