//! A bounded cache of verified bytes.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Two halves: what is used moves to the young one; when that is full, it becomes the old one and the old one goes. Nearly as good as
/// least recently used, without a list.
pub struct Cache<K> {
    half_bytes: usize,
    halves: Mutex<Halves<K>>,
}

struct Halves<K> {
    young: HashMap<K, Arc<Vec<u8>>>,
    old: HashMap<K, Arc<Vec<u8>>>,
    young_bytes: usize,
}

impl<K: Eq + Hash + Copy> Cache<K> {
    pub fn new(bytes: usize) -> Cache<K> {
        let halves = Halves { young: HashMap::new(), old: HashMap::new(), young_bytes: 0 };
        Cache { half_bytes: bytes / 2, halves: Mutex::new(halves) }
    }

    pub fn get(&self, key: &K) -> Option<Arc<Vec<u8>>> {
        let mut halves = self.halves.lock();
        if let Some(found) = halves.young.get(key) {
            return Some(found.clone());
        }
        let found = halves.old.remove(key)?;
        self.put(&mut halves, *key, found.clone());
        Some(found)
    }

    pub fn insert(&self, key: K, value: Arc<Vec<u8>>) {
        self.put(&mut self.halves.lock(), key, value);
    }

    pub fn clear(&self) {
        let mut halves = self.halves.lock();
        *halves = Halves { young: HashMap::new(), old: HashMap::new(), young_bytes: 0 };
    }

    fn put(&self, halves: &mut Halves<K>, key: K, value: Arc<Vec<u8>>) {
        if halves.young_bytes + value.len() > self.half_bytes {
            halves.old = std::mem::take(&mut halves.young);
            halves.young_bytes = 0;
        }
        halves.young_bytes += value.len();
        halves.young.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_goes() {
        let cache = Cache::new(2000);
        cache.insert(0, Arc::new(vec![0; 100]));
        for key in 1..100 {
            cache.insert(key, Arc::new(vec![1; 100]));
            assert!(cache.get(&0).is_some(), "after {key}");
        }
        assert!(cache.get(&1).is_none() && cache.get(&99).is_some());
        let halves = cache.halves.lock();
        assert!(halves.young.len() + halves.old.len() <= 20);
    }
}
