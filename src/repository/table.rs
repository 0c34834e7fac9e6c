//! Sorted tables of keys and values, cut into nodes so that equal runs of two tables are equal nodes.
//!
//! Used for names (key: path) and files (key: file id). Where a node ends is decided by the hash of its last key: a change moves the
//! borders of the nodes around it and no others, whatever was inserted before. Nodes of a table are listed, by first key, in
//! nodes of the next level, up to a single one.
//!
//! Node: `T`, version 1, level u8, zero u8, count u32; per entry: key length u16, key, value length u32, value. In levels above
//! 0 the value is an object reference (52). Keys ascend.

use super::ids::ObjectRef;
use crate::error::{Error, Result};
use crate::ondisk::bytes::{Decoded, Malformed, Reader};
use std::collections::HashSet;

/// One key in this many ends a node, once it has [`ENTRIES_MIN`].
const ENTRIES_MEAN: u32 = 64;
const ENTRIES_MIN: usize = 8;
/// A node ends before a value that would make it larger, keys not counted; a single entry may be larger.
const NODE_BYTES_MAX: usize = 48 * 1024;
/// The longest value (a directory entry with its extended attributes) that a node takes.
pub const VALUE_BYTES_MAX: usize = 512 * 1024;
const KEY_BYTES_MAX: usize = 8 * 1024;
const LEVELS_MAX: u8 = 16;

pub type Entry = (Vec<u8>, Vec<u8>);

/// Where nodes go. Equal bytes may be answered with an earlier reference.
pub trait NodeSink {
    fn put_node(&self, bytes: &[u8]) -> Result<ObjectRef>;
}

/// Where nodes come from.
pub trait NodeSource {
    fn node(&self, object: &ObjectRef) -> Result<std::sync::Arc<Vec<u8>>>;
    /// The error for a node whose bytes, though they fit their id, are no node.
    fn malformed(&self, object: &ObjectRef, why: Malformed) -> Error;
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    pub level: u8,
    pub entries: Vec<Entry>,
}

impl Node {
    pub fn decode(bytes: &[u8]) -> Decoded<Node> {
        let mut r = Reader::new(bytes);
        let [kind, version, level, zero] = r.array()?;
        if (kind, version, zero) != (b'T', 1, 0) || level > LEVELS_MAX {
            return Err(Malformed("no table node of a version that this program knows"));
        }
        let count = r.u32()?;
        let mut entries: Vec<Entry> = Vec::new();
        for _ in 0..count {
            let key_len = r.u16()?;
            let key = r.take(key_len.into())?.to_vec();
            let value_len = usize::try_from(r.u32()?).unwrap_or(usize::MAX);
            let value = r.take(value_len)?.to_vec();
            if entries.last().is_some_and(|(before, _)| *before >= key) {
                return Err(Malformed("keys do not ascend"));
            }
            entries.push((key, value));
        }
        if r.remaining() == 0 { Ok(Node { level, entries }) } else { Err(Malformed("bytes behind the end of a node")) }
    }

    pub fn children(&self) -> Decoded<Vec<ObjectRef>> {
        self.entries.iter().map(|(_, value)| ObjectRef::take(&mut Reader::new(value))).collect()
    }
}

/// Builds a table from entries in ascending order of their keys; holds one unfinished node per level.
pub struct TableBuilder<'a> {
    sink: &'a dyn NodeSink,
    levels: Vec<Open>,
    last_key: Option<Vec<u8>>,
    pub entries: u64,
}

#[derive(Default)]
struct Open {
    bytes: Vec<u8>,
    count: usize,
    first_key: Vec<u8>,
}

impl<'a> TableBuilder<'a> {
    pub fn new(sink: &'a dyn NodeSink) -> TableBuilder<'a> {
        TableBuilder { sink, levels: Vec::new(), last_key: None, entries: 0 }
    }

    pub fn push(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let show = || String::from_utf8_lossy(key).replace('\0', "/");
        if self.last_key.as_deref().is_some_and(|last| last >= key) {
            return Err(Error::Invalid(format!("`{}` comes out of order", show())));
        }
        if key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
            return Err(Error::Invalid(format!("`{}` has too long a name or too many attributes", show())));
        }
        self.last_key = Some(key.to_vec());
        self.entries += 1;
        self.push_at(0, key, value)
    }

    fn push_at(&mut self, level: usize, key: &[u8], value: &[u8]) -> Result<()> {
        if self.levels.len() == level {
            self.levels.push(Open::default());
        }
        let open = &mut self.levels[level];
        if open.count > 0 && open.bytes.len() + value.len() > NODE_BYTES_MAX {
            self.end_node(level)?;
        }
        let open = &mut self.levels[level];
        if open.count == 0 {
            open.first_key = key.to_vec();
        }
        open.bytes.extend_from_slice(&u16::try_from(key.len()).unwrap_or(u16::MAX).to_le_bytes());
        open.bytes.extend_from_slice(key);
        open.bytes.extend_from_slice(&u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
        open.bytes.extend_from_slice(value);
        open.count += 1;
        if open.count >= ENTRIES_MIN && ends_node(level, key) { self.end_node(level) } else { Ok(()) }
    }

    fn end_node(&mut self, level: usize) -> Result<()> {
        let open = std::mem::take(&mut self.levels[level]);
        if open.count == 0 {
            return Ok(());
        }
        let object = self.put(level, &open)?;
        let mut value = Vec::with_capacity(ObjectRef::BYTES);
        object.put(&mut value);
        self.push_at(level + 1, &open.first_key, &value)
    }

    fn put(&self, level: usize, open: &Open) -> Result<ObjectRef> {
        let mut node = vec![b'T', 1, u8::try_from(level).unwrap_or(u8::MAX), 0];
        node.extend_from_slice(&u32::try_from(open.count).unwrap_or(u32::MAX).to_le_bytes());
        node.extend_from_slice(&open.bytes);
        self.sink.put_node(&node)
    }

    /// The root; None for an empty table.
    pub fn finish(mut self) -> Result<Option<ObjectRef>> {
        let mut level = 0;
        while level < self.levels.len() {
            let top = level + 1 == self.levels.len();
            // A single node at the top is the root, and a node with a single child is spared.
            if top && level > 0 && self.levels[level].count == 1 {
                let bytes = &self.levels[level].bytes;
                let value = bytes.get(bytes.len() - ObjectRef::BYTES..).unwrap_or_default();
                let child = ObjectRef::take(&mut Reader::new(value));
                return child.map(Some).map_err(|Malformed(why)| Error::Invalid(why.to_owned()));
            }
            if top {
                let open = std::mem::take(&mut self.levels[level]);
                return if open.count == 0 { Ok(None) } else { self.put(level, &open).map(Some) };
            }
            self.end_node(level)?;
            level += 1;
        }
        Ok(None)
    }
}

fn ends_node(level: usize, key: &[u8]) -> bool {
    let seed = u32::try_from(level).unwrap_or(u32::MAX).wrapping_mul(0x9e37_79b9);
    // A checksum is linear; the multiplication spreads what its low bits have in common.
    let hash = (crc32c::crc32c_append(seed, key)).wrapping_mul(0x85eb_ca6b);
    (hash >> 8).is_multiple_of(ENTRIES_MEAN)
}

pub fn load(source: &dyn NodeSource, object: &ObjectRef) -> Result<Node> {
    let bytes = source.node(object)?;
    Node::decode(&bytes).map_err(|why| source.malformed(object, why))
}

fn children(source: &dyn NodeSource, object: &ObjectRef, node: &Node) -> Result<Vec<ObjectRef>> {
    node.children().map_err(|why| source.malformed(object, why))
}

/// The value of a key.
pub fn get(source: &dyn NodeSource, root: Option<&ObjectRef>, key: &[u8]) -> Result<Option<Vec<u8>>> {
    let Some(mut at) = root.copied() else { return Ok(None) };
    for _ in 0..=LEVELS_MAX {
        let mut node = load(source, &at)?;
        if node.level == 0 {
            let found = node.entries.binary_search_by(|(k, _)| k.as_slice().cmp(key));
            return Ok(found.ok().map(|index| node.entries.swap_remove(index).1));
        }
        let after = node.entries.partition_point(|(first, _)| first.as_slice() <= key);
        let Some(index) = after.checked_sub(1) else { return Ok(None) };
        at = children(source, &at, &node)?[index];
    }
    Err(source.malformed(&at, Malformed("the table has no leaves")))
}

/// Walks a table in order; holds one node per level.
pub struct Cursor<'a> {
    source: &'a dyn NodeSource,
    /// Nodes from the root down, each with the index of its next entry.
    stack: Vec<(Node, usize)>,
}

impl<'a> Cursor<'a> {
    /// At the first key that is not below `from`.
    pub fn seek(source: &'a dyn NodeSource, root: Option<&ObjectRef>, from: &[u8]) -> Result<Cursor<'a>> {
        let mut cursor = Cursor { source, stack: Vec::new() };
        if let Some(root) = root {
            cursor.descend(*root, from)?;
        }
        Ok(cursor)
    }

    fn descend(&mut self, mut at: ObjectRef, from: &[u8]) -> Result<()> {
        loop {
            let node = load(self.source, &at)?;
            if node.level == 0 {
                let index = node.entries.partition_point(|(key, _)| key.as_slice() < from);
                self.stack.push((node, index));
                return Ok(());
            }
            if self.stack.len() > LEVELS_MAX.into() {
                return Err(self.source.malformed(&at, Malformed("the table has no leaves")));
            }
            let index = node.entries.partition_point(|(first, _)| first.as_slice() <= from).saturating_sub(1);
            let Some(child) = children(self.source, &at, &node)?.get(index).copied() else { return Ok(()) };
            at = child;
            self.stack.push((node, index + 1));
        }
    }

    pub fn next(&mut self) -> Result<Option<Entry>> {
        loop {
            let Some((node, index)) = self.stack.last_mut() else { return Ok(None) };
            let Some(entry) = node.entries.get(*index) else {
                self.stack.pop();
                continue;
            };
            *index += 1;
            if node.level == 0 {
                return Ok(Some(entry.clone()));
            }
            let child = ObjectRef::take(&mut Reader::new(&entry.1));
            let child = child.map_err(|Malformed(why)| Error::Invalid(format!("a table node is malformed: {why}")))?;
            self.descend(child, &[])?;
        }
    }
}

/// Told of a key with its values before and after.
pub type OnDifference<'c> = dyn FnMut(&[u8], Option<&[u8]>, Option<&[u8]>) -> Result<()> + 'c;

/// Calls for each key whose value differs, in order, with the values before and after. Equal nodes are not read.
pub fn diff(
    source: &dyn NodeSource,
    before: Option<&ObjectRef>,
    after: Option<&ObjectRef>,
    call: &mut OnDifference<'_>,
) -> Result<()> {
    let (mut a, mut b): (Vec<_>, Vec<_>) =
        (before.copied().into_iter().collect(), after.copied().into_iter().collect());
    let top = a.iter().chain(&b).map(|root| Ok(load(source, root)?.level)).collect::<Result<Vec<u8>>>()?;
    for level in (1..=top.into_iter().max().unwrap_or(0)).rev() {
        drop_shared(&mut a, &mut b);
        a = one_level_down(source, a, level)?;
        b = one_level_down(source, b, level)?;
    }
    drop_shared(&mut a, &mut b);
    let mut a = Leaves { source, nodes: a.into_iter(), entries: Vec::new().into_iter() };
    let mut b = Leaves { source, nodes: b.into_iter(), entries: Vec::new().into_iter() };
    let (mut x, mut y) = (a.next()?, b.next()?);
    loop {
        let order = match (&x, &y) {
            (None, None) => return Ok(()),
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((x, _)), Some((y, _))) => x.cmp(y),
        };
        let old = if order.is_le() { x.take() } else { None };
        let new = if order.is_ge() { y.take() } else { None };
        if let Some((key, _)) = old.as_ref().or(new.as_ref()) {
            let (old, new) = (old.as_ref().map(|e| e.1.as_slice()), new.as_ref().map(|e| e.1.as_slice()));
            if old != new {
                call(key, old, new)?;
            }
        }
        if order.is_le() {
            x = a.next()?;
        }
        if order.is_ge() {
            y = b.next()?;
        }
    }
}

fn drop_shared(a: &mut Vec<ObjectRef>, b: &mut Vec<ObjectRef>) {
    let ids = |nodes: &[ObjectRef]| nodes.iter().map(|node| node.id).collect::<HashSet<_>>();
    let (in_a, in_b) = (ids(a), ids(b));
    a.retain(|node| !in_b.contains(&node.id));
    b.retain(|node| !in_a.contains(&node.id));
}

/// Replaces nodes of this level by their children; the others are lower already.
fn one_level_down(source: &dyn NodeSource, nodes: Vec<ObjectRef>, level: u8) -> Result<Vec<ObjectRef>> {
    let mut below = Vec::new();
    for object in nodes {
        let node = load(source, &object)?;
        if node.level == level { below.extend(children(source, &object, &node)?) } else { below.push(object) }
    }
    Ok(below)
}

struct Leaves<'a> {
    source: &'a dyn NodeSource,
    nodes: std::vec::IntoIter<ObjectRef>,
    entries: std::vec::IntoIter<Entry>,
}

impl Leaves<'_> {
    fn next(&mut self) -> Result<Option<Entry>> {
        loop {
            if let Some(entry) = self.entries.next() {
                return Ok(Some(entry));
            }
            let Some(object) = self.nodes.next() else { return Ok(None) };
            self.entries = load(self.source, &object)?.entries.into_iter();
        }
    }
}

/// Calls for every node of a table, from the top, unless `enter` says that one is known.
pub fn nodes(
    source: &dyn NodeSource,
    root: Option<&ObjectRef>,
    enter: &mut dyn FnMut(&ObjectRef) -> Result<bool>,
) -> Result<()> {
    let mut waiting: Vec<ObjectRef> = root.copied().into_iter().collect();
    while let Some(object) = waiting.pop() {
        if enter(&object)? {
            let node = load(source, &object)?;
            if node.level > 0 {
                waiting.extend(children(source, &object, &node)?);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::ids::{ObjectId, PackId, Place};
    use std::cell::{Cell, RefCell};
    use std::collections::{BTreeMap, HashMap};
    use std::sync::Arc;

    #[derive(Default)]
    struct Memory {
        nodes: RefCell<HashMap<ObjectId, Arc<Vec<u8>>>>,
        read: Cell<usize>,
    }

    impl NodeSink for Memory {
        fn put_node(&self, bytes: &[u8]) -> Result<ObjectRef> {
            let id = ObjectId(*blake3::hash(bytes).as_bytes());
            self.nodes.borrow_mut().insert(id, Arc::new(bytes.to_vec()));
            Ok(ObjectRef { id, place: Place { pack: PackId(1), frame: 0, start: 0, len: 0 } })
        }
    }

    impl NodeSource for Memory {
        fn node(&self, object: &ObjectRef) -> Result<Arc<Vec<u8>>> {
            self.read.set(self.read.get() + 1);
            Ok(self.nodes.borrow()[&object.id].clone())
        }
        fn malformed(&self, _: &ObjectRef, Malformed(why): Malformed) -> Error {
            Error::Invalid(why.to_owned())
        }
    }

    fn build(memory: &Memory, entries: &BTreeMap<Vec<u8>, Vec<u8>>) -> Option<ObjectRef> {
        let mut builder = TableBuilder::new(memory);
        entries.iter().try_for_each(|(key, value)| builder.push(key, value)).expect("in order");
        builder.finish().expect("built")
    }

    fn numbered(n: u32) -> BTreeMap<Vec<u8>, Vec<u8>> {
        (0..n).map(|i| (format!("key{i:07}").into_bytes(), format!("value {i}").into_bytes())).collect()
    }

    #[test]
    fn a_table_reads_back() {
        for n in [0, 1, 7, 64, 5000] {
            let (memory, entries) = (Memory::default(), numbered(n));
            let root = build(&memory, &entries);
            let mut cursor = Cursor::seek(&memory, root.as_ref(), b"").expect("at its start");
            let mut seen = BTreeMap::new();
            while let Some((key, value)) = cursor.next().expect("next") {
                assert_eq!(get(&memory, root.as_ref(), &key).expect("found"), Some(value.clone()));
                seen.insert(key, value);
            }
            assert_eq!(seen, entries);
            assert_eq!(get(&memory, root.as_ref(), b"key0000003x").expect("asked"), None);
            let mut cursor = Cursor::seek(&memory, root.as_ref(), b"key0000003x").expect("in the middle");
            let next = entries.range(b"key0000003x".to_vec()..).next().map(|(k, v)| (k.clone(), v.clone()));
            assert_eq!(cursor.next().expect("next"), next);
        }
    }

    #[test]
    fn a_change_shares_all_nodes_but_its_own_and_diff_reads_only_those() {
        let (memory, mut entries) = (Memory::default(), numbered(20_000));
        let before = build(&memory, &entries);
        let nodes_before = memory.nodes.borrow().len();
        entries.insert(b"key0000500+".to_vec(), b"new".to_vec());
        entries.remove(b"key0010000".as_slice());
        entries.insert(b"key0015000".to_vec(), b"changed".to_vec());
        let after = build(&memory, &entries);
        let new_nodes = memory.nodes.borrow().len() - nodes_before;
        assert!(new_nodes <= 12, "{new_nodes} new nodes of {nodes_before}");
        memory.read.set(0);
        let mut seen = Vec::new();
        diff(&memory, before.as_ref(), after.as_ref(), &mut |key, old, new| {
            seen.push((key.to_vec(), old.is_some(), new.is_some()));
            Ok(())
        })
        .expect("compared");
        let expected = [("key0000500+", false, true), ("key0010000", true, false), ("key0015000", true, true)];
        let expected: Vec<_> = expected.iter().map(|(key, a, b)| (key.as_bytes().to_vec(), *a, *b)).collect();
        assert_eq!(seen, expected);
        assert!(memory.read.get() < 40, "{} nodes were read", memory.read.get());
    }

    #[test]
    fn tables_of_different_height_compare() {
        let memory = Memory::default();
        let (small, large) = (numbered(3), numbered(9000));
        let (a, b) = (build(&memory, &small), build(&memory, &large));
        for (a, b, expected) in [(&a, &b, 8997), (&b, &a, 8997), (&None, &b, 9000), (&a, &None, 3), (&a, &a, 0)] {
            let mut count = 0;
            let mut call = |_: &[u8], _: Option<&[u8]>, _: Option<&[u8]>| {
                count += 1;
                Ok(())
            };
            diff(&memory, a.as_ref(), b.as_ref(), &mut call).expect("compared");
            assert_eq!(count, expected);
        }
    }

    #[test]
    fn golden_bytes_and_damage() {
        let memory = Memory::default();
        let root = build(&memory, &numbered(2)).expect("a root");
        let bytes = memory.node(&root).expect("there");
        assert_eq!((bytes.len(), crc32c::crc32c(&bytes)), (54, 3_332_382_816), "the format changed: raise the version");
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let _ = Node::decode(&bad);
        }
        for len in 0..bytes.len() {
            assert!(Node::decode(&bytes[..len]).is_err());
        }
    }
}
