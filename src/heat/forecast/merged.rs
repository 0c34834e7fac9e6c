//! The shards of one file of which only the whole is known.
//!
//! They are the most: nine of ten where a tenth of a volume is hot. So 64 neighbours share one list, at 26 bytes each, instead of each having a place in a tree.

use super::history::REST_EPOCHS;
use super::record::BlockRecord;
use std::collections::BTreeMap;

/// Shards that share a list: 256 MiB of 64 KiB blocks.
const GROUP_SHARDS: u64 = 64;
const GROUP_SHARDS_MAX: usize = 64;
/// A list's place in a tree that is two thirds full, and the allocation's head and rounding.
const GROUP_COST_BYTES: usize = 72;

/// A shard of which only the whole is known: its record is that of all its blocks together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merged {
    pub(super) record: BlockRecord,
    /// Epochs for which it is not split.
    rests: u8,
    /// Which of its group it is; the list's own business.
    place: u8,
}

impl Merged {
    /// A shard that may be split at once.
    pub(super) fn of(record: BlockRecord) -> Merged {
        Merged { record, rests: 0, place: 0 }
    }

    /// One that was just merged.
    pub(super) fn resting(record: BlockRecord) -> Merged {
        Merged { rests: REST_EPOCHS, ..Merged::of(record) }
    }

    pub(super) fn rest(&mut self) {
        self.rests = REST_EPOCHS;
    }

    pub(super) fn is_resting(&self) -> bool {
        self.rests > 0
    }

    pub(super) fn begin_epoch(&mut self) {
        self.record.begin_epoch();
        self.rests = self.rests.saturating_sub(1);
    }
}

/// See the module's head. Each list is in order and has an entry.
#[derive(Default)]
pub(super) struct MergedShards {
    groups: BTreeMap<u64, Vec<Merged>>,
}

impl MergedShards {
    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Merged> {
        let (group, place) = place_of(number);
        let list = self.groups.get_mut(&group)?;
        let at = find(list, place).ok()?;
        list.get_mut(at)
    }

    /// The shard of this number, which is made of `merged` if there is none.
    pub(super) fn get_or_insert(&mut self, number: u64, merged: Merged) -> &mut Merged {
        let (group, place) = place_of(number);
        let list = self.groups.entry(group).or_default();
        let at = match find(list, place) {
            Ok(at) => at,
            Err(at) => {
                if list.len() == list.capacity() {
                    // By halves and not by doubling: most lists stay as they are.
                    list.reserve_exact((list.len() / 2).clamp(1, GROUP_SHARDS_MAX - list.len()));
                }
                list.insert(at, Merged { place, ..merged });
                at
            }
        };
        &mut list[at]
    }

    pub(super) fn insert(&mut self, number: u64, merged: Merged) {
        let known = self.get_or_insert(number, merged);
        *known = Merged { place: known.place, ..merged };
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Merged> {
        let (group, place) = place_of(number);
        let list = self.groups.get_mut(&group)?;
        let removed = list.remove(find(list, place).ok()?);
        if list.is_empty() {
            self.groups.remove(&group);
        }
        Some(removed)
    }

    /// Forgets those from this number on.
    pub(super) fn truncate(&mut self, first_gone: u64) {
        let (group, place) = place_of(first_gone);
        let mut tail = self.groups.split_off(&group);
        if let Some(mut list) = tail.remove(&group) {
            list.retain(|merged| merged.place < place);
            if !list.is_empty() {
                self.groups.insert(group, list);
            }
        }
    }

    pub(super) fn retain(&mut self, mut stays: impl FnMut(&Merged) -> bool) {
        self.groups.retain(|_, list| {
            list.retain(&mut stays);
            if list.len() + list.len() / 8 < list.capacity() {
                list.shrink_to_fit();
            }
            !list.is_empty()
        });
    }

    /// In the order of their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Merged)> {
        self.groups.iter().flat_map(|(group, list)| {
            list.iter().map(move |merged| (group * GROUP_SHARDS + u64::from(merged.place), merged))
        })
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Merged> {
        self.groups.values_mut().flatten()
    }

    pub(super) fn len(&self) -> usize {
        self.groups.values().map(Vec::len).sum()
    }

    /// Memory of all, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let lists = self.groups.values().map(|list| list.capacity() * size_of::<Merged>() + GROUP_COST_BYTES);
        lists.sum()
    }
}

/// Number of the group, and the place in it.
fn place_of(number: u64) -> (u64, u8) {
    (number / GROUP_SHARDS, u8::try_from(number % GROUP_SHARDS).unwrap_or(0))
}

/// Where the shard at this place is, or would be.
fn find(list: &[Merged], place: u8) -> Result<usize, usize> {
    list.binary_search_by_key(&place, |merged| merged.place)
}

const _: () = assert!(size_of::<Merged>() == 26);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(accesses: u16) -> Merged {
        let mut record = BlockRecord::default();
        record.count(false, false, accesses);
        Merged::of(record)
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u64, u16),
        Count(u64, u16),
        Remove(u64),
        Truncate(u64),
        Retain(u16),
    }

    fn op() -> impl Strategy<Value = Op> {
        let number = || 0u64..300;
        prop_oneof![
            6 => (number(), 1u16..100).prop_map(|(number, count)| Op::Insert(number, count)),
            6 => (number(), 1u16..100).prop_map(|(number, count)| Op::Count(number, count)),
            3 => number().prop_map(Op::Remove),
            1 => number().prop_map(Op::Truncate),
            1 => (1u16..30).prop_map(Op::Retain),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_map_by_number(ops in prop::collection::vec(op(), 1..400)) {
            let mut shards = MergedShards::default();
            let mut model: BTreeMap<u64, f32> = BTreeMap::new();
            for op in ops {
                match op {
                    Op::Insert(number, count) => {
                        shards.insert(number, one(count));
                        model.insert(number, f32::from(count));
                    }
                    Op::Count(number, count) => {
                        shards.get_or_insert(number, one(0)).record.count(false, false, count);
                        *model.entry(number).or_default() += f32::from(count);
                    }
                    Op::Remove(number) => {
                        let removed = shards.remove(number).map(|merged| merged.record.accesses());
                        prop_assert_eq!(removed, model.remove(&number));
                    }
                    Op::Truncate(first_gone) => {
                        shards.truncate(first_gone);
                        model.split_off(&first_gone);
                    }
                    Op::Retain(least) => {
                        shards.retain(|merged| merged.record.accesses() >= f32::from(least));
                        model.retain(|_, accesses| *accesses >= f32::from(least));
                    }
                }
                let found: Vec<(u64, f32)> =
                    shards.iter().map(|(number, merged)| (number, merged.record.accesses())).collect();
                prop_assert_eq!(found, model.iter().map(|(number, accesses)| (*number, *accesses)).collect::<Vec<_>>());
                prop_assert_eq!(shards.len(), model.len());
                for number in 0..300 {
                    prop_assert_eq!(shards.get_mut(number).is_some(), model.contains_key(&number));
                }
            }
        }
    }

    #[test]
    fn a_full_file_takes_28_bytes_a_shard() {
        let mut shards = MergedShards::default();
        // In no order.
        (0..4096u64).for_each(|at| shards.insert(at * 1_237 % 4096, one(1)));
        assert_eq!(shards.len(), 4096);
        assert!(shards.bytes() <= 28 * 4096, "{}", shards.bytes());
    }
}
