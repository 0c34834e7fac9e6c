//! The names of PostgreSQL's relations, from the data directory's own files: no connection, no server.
//!
//! A relation's file is called by a number. Which relation that is stands in `pg_class`, a table of each database, whose own file is
//! found through `pg_filenode.map`. The columns read here have fixed lengths and come first in the row, so that the row needs no description. What
//! a running server has not written yet is not seen until its next checkpoint, and whatever does not look as expected is passed
//! over: a file without a name here simply keeps its number.

mod heap;

use heap::{Row, rows, whole_numbers};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Numbers that never change.
const PG_DATABASE: u32 = 1262;
const PG_CLASS: u32 = 1259;
const PG_NAMESPACE: u32 = 2615;
const PG_INDEX: u32 = 2610;
/// Of `pg_filenode.map`, in every version.
const MAP_MAGIC: u32 = 0x0059_2717;
/// A map is 512 or 524 bytes long.
const MAP_ENTRIES_MAX: usize = 64;
/// Catalogs are small; what is larger is read up to here only.
const CATALOG_BYTES_MAX: u64 = 256 << 20;
/// Length of a name in a catalog.
const NAME_BYTES: usize = 64;

/// What `pg_class` says of one relation.
struct Class {
    oid: u32,
    name: String,
    namespace: u32,
    filenode: u32,
    toast: u32,
    kind: u8,
}

/// Relations by the files that they lie in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relations {
    /// By directory (`base/5`, `global`), then by number.
    names: HashMap<String, HashMap<u32, String>>,
}

impl Relations {
    /// Of the data directory at `root`; empty when it is none.
    pub fn read(root: &Path) -> Relations {
        let mut found = Relations::default();
        let global = mapping(&root.join("global"));
        let databases = match global.get(&PG_DATABASE) {
            Some(filenode) => named_rows(&root.join("global").join(filenode.to_string())),
            None => HashMap::new(),
        };
        let Ok(entries) = fs::read_dir(root.join("base")) else { return found };
        for entry in entries.flatten() {
            let Some(oid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let database = databases.get(&oid).cloned().unwrap_or_else(|| oid.to_string());
            let mapped = mapping(&entry.path());
            let (own, shared) = relations_of(&entry.path(), &mapped, &global, &database);
            found.names.insert(format!("base/{oid}"), own);
            found.names.entry("global".to_owned()).or_insert(shared);
        }
        found
    }

    /// The relation whose file, fork or segment lies at `path`, relative to the data directory.
    pub fn name_of(&self, path: &str) -> Option<String> {
        let (directory, file) = path.rsplit_once('/')?;
        let end = file.find(['_', '.']).unwrap_or(file.len());
        let name = self.names.get(directory)?.get(&file.get(..end)?.parse().ok()?)?;
        Some(match file.get(end..)? {
            fork if fork.starts_with("_fsm") => format!("{name} (free space map)"),
            fork if fork.starts_with("_vm") => format!("{name} (visibility map)"),
            fork if fork.starts_with("_init") => format!("{name} (init fork)"),
            _ => name.clone(),
        })
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// Files of relations by the relations' numbers, from `pg_filenode.map`.
fn mapping(directory: &Path) -> HashMap<u32, u32> {
    let Ok(bytes) = fs::read(directory.join("pg_filenode.map")) else { return HashMap::new() };
    let words = whole_numbers(&bytes);
    let (Some(&MAP_MAGIC), Some(count)) = (words.first(), words.get(1)) else { return HashMap::new() };
    let count = usize::try_from(*count).unwrap_or(usize::MAX);
    if count > MAP_ENTRIES_MAX {
        return HashMap::new();
    }
    words.get(2..).unwrap_or_default().chunks_exact(2).take(count).map(|pair| (pair[0], pair[1])).collect()
}

/// The rows of a catalog's file; none if it cannot be read.
fn catalog(path: &Path) -> Vec<Row> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(CATALOG_BYTES_MAX).read_to_end(&mut bytes));
    read.map(|_| rows(&bytes)).unwrap_or_default()
}

/// Number and name, which open the rows of `pg_database` and `pg_namespace`.
fn named_rows(path: &Path) -> HashMap<u32, String> {
    // The latest version of a row is told apart only roughly, so it comes last and wins.
    let mut all = catalog(path);
    all.sort_by_key(|row| row.is_latest);
    all.iter().filter_map(|row| Some((row.number(0)?, row.text(4, NAME_BYTES)?))).collect()
}

fn class_of(row: &Row) -> Option<Class> {
    let kinds = b"rtimvSIpcf";
    // Since version 18 another column stands before these two.
    let (toast, kind) = [(108, 115), (112, 119)].into_iter().find_map(|(toast, kind)| {
        let (persistence, kind) = (row.byte(kind - 1)?, row.byte(kind)?);
        (b"ptu".contains(&persistence) && kinds.contains(&kind)).then_some((row.number(toast)?, kind))
    })?;
    Some(Class {
        oid: row.number(0)?,
        name: row.text(4, NAME_BYTES).filter(|name| !name.is_empty())?,
        namespace: row.number(68)?,
        filenode: row.number(88)?,
        toast,
        kind,
    })
}

/// Names by file number: those in the database's own directory, and the shared ones, which every database lists.
fn relations_of(
    directory: &Path,
    mapped: &HashMap<u32, u32>,
    global: &HashMap<u32, u32>,
    database: &str,
) -> (HashMap<u32, String>, HashMap<u32, String>) {
    let Some(pg_class) = mapped.get(&PG_CLASS) else { return (HashMap::new(), HashMap::new()) };
    let mut all = catalog(&directory.join(pg_class.to_string()));
    all.sort_by_key(|row| row.is_latest);
    let classes: HashMap<u32, Class> = all.iter().filter_map(class_of).map(|class| (class.oid, class)).collect();
    let file_of = |oid: u32| classes.get(&oid).map(|class| class.filenode).filter(|filenode| *filenode != 0);
    let path_of = |oid: u32| file_of(oid).map(|filenode| directory.join(filenode.to_string()));
    let namespaces = path_of(PG_NAMESPACE).map(|path| named_rows(&path)).unwrap_or_default();
    let indexed: HashMap<u32, u32> = path_of(PG_INDEX).map_or_else(HashMap::new, |path| {
        catalog(&path).iter().filter_map(|row| Some((row.number(0)?, row.number(4)?))).collect()
    });
    let toasted: HashMap<u32, u32> =
        classes.values().filter(|class| class.toast != 0).map(|class| (class.toast, class.oid)).collect();
    let qualified = |class: &Class| match namespaces.get(&class.namespace) {
        Some(namespace) => format!("{database}.{namespace}.{}", class.name),
        None => format!("{database}.{}", class.name),
    };
    let describe = |class: &Class| {
        let owner = |oid: Option<&u32>| oid.and_then(|oid| classes.get(oid)).map(&qualified);
        match class.kind {
            b't' => owner(toasted.get(&class.oid)).map(|owner| format!("toast of {owner}")),
            b'i' => {
                let table = indexed.get(&class.oid);
                match table.and_then(|table| toasted.get(table)) {
                    Some(owned) => owner(Some(owned)).map(|owner| format!("toast index of {owner}")),
                    None => owner(table).map(|table| format!("index {} of {table}", class.name)),
                }
            }
            _ => None,
        }
        .unwrap_or_else(|| qualified(class))
    };
    let (mut own, mut shared) = (HashMap::new(), HashMap::new());
    for class in classes.values() {
        if let Some(filenode) = file_of(class.oid).or_else(|| mapped.get(&class.oid).copied()) {
            own.insert(filenode, describe(class));
        } else if let Some(filenode) = global.get(&class.oid) {
            shared.insert(*filenode, class.name.clone());
        }
    }
    (own, shared)
}

#[cfg(test)]
mod tests {
    use super::Relations;
    use super::heap::tests::page;
    use std::fs;
    use std::path::Path;

    /// A row of `pg_class` as version 15 lays it out.
    fn class(oid: u32, name: &str, namespace: u32, filenode: u32, toast: u32, kind: u8) -> Vec<u8> {
        let mut row = vec![0; 172];
        let mut put = |at: usize, bytes: &[u8]| row[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &oid.to_le_bytes());
        put(4, name.as_bytes());
        put(68, &namespace.to_le_bytes());
        put(88, &filenode.to_le_bytes());
        put(108, &toast.to_le_bytes());
        put(114, b"p");
        put(115, &[kind]);
        row
    }

    fn named(oid: u32, name: &str) -> Vec<u8> {
        let mut row = vec![0; 80];
        row[..4].copy_from_slice(&oid.to_le_bytes());
        row[4..4 + name.len()].copy_from_slice(name.as_bytes());
        row
    }

    fn map(entries: &[(u32, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        let count = u32::try_from(entries.len()).unwrap();
        let words = [0x0059_2717, count].into_iter().chain(entries.iter().flat_map(|(oid, file)| [*oid, *file]));
        for (at, word) in words.enumerate() {
            bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn cluster(root: &Path) {
        fs::create_dir_all(root.join("base/5")).unwrap();
        fs::create_dir_all(root.join("global")).unwrap();
        fs::write(root.join("global/pg_filenode.map"), map(&[(1262, 1262), (1260, 77)])).unwrap();
        fs::write(root.join("global/1262"), page(&[named(5, "shop")])).unwrap();
        fs::write(root.join("base/5/pg_filenode.map"), map(&[(1259, 900)])).unwrap();
        fs::write(root.join("base/5/2615"), page(&[named(2200, "public"), named(11, "pg_catalog")])).unwrap();
        let index = [5000u32, 4000].iter().flat_map(|word| word.to_le_bytes()).chain([0; 40]).collect::<Vec<u8>>();
        fs::write(root.join("base/5/2610"), page(&[index])).unwrap();
        let classes = [
            class(1259, "pg_class", 11, 0, 0, b'r'),
            class(1260, "pg_authid", 11, 0, 0, b'r'),
            class(2615, "pg_namespace", 11, 2615, 0, b'r'),
            class(2610, "pg_index", 11, 2610, 0, b'r'),
            class(4000, "orders", 2200, 16_390, 4500, b'r'),
            class(4500, "pg_toast_4000", 99, 16_391, 0, b't'),
            class(5000, "orders_pkey", 2200, 16_392, 0, b'i'),
        ];
        fs::write(root.join("base/5/900"), page(&classes)).unwrap();
    }

    #[test]
    fn names_come_from_the_catalogs() {
        let dir = tempfile::tempdir().unwrap();
        cluster(dir.path());
        let relations = Relations::read(dir.path());
        for (path, name) in [
            ("base/5/16390", Some("shop.public.orders")),
            ("base/5/16390.3", Some("shop.public.orders")),
            ("base/5/16390_vm", Some("shop.public.orders (visibility map)")),
            ("base/5/16391", Some("toast of shop.public.orders")),
            ("base/5/16392", Some("index orders_pkey of shop.public.orders")),
            ("base/5/900", Some("shop.pg_catalog.pg_class")),
            ("global/77", Some("pg_authid")),
            ("base/5/4711", None),
            ("base/6/16390", None),
            ("base/5/PG_VERSION", None),
            ("postgresql.conf", None),
        ] {
            assert_eq!(relations.name_of(path).as_deref(), name, "{path}");
        }
    }

    #[test]
    fn damage_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Relations::read(dir.path()).is_empty());
        cluster(dir.path());
        for file in ["global/pg_filenode.map", "global/1262", "base/5/pg_filenode.map", "base/5/900", "base/5/2610"] {
            let whole = fs::read(dir.path().join(file)).unwrap();
            for seed in 0..200usize {
                let mut bytes = whole.clone();
                bytes.truncate(whole.len() - seed * 7 % whole.len());
                for at in (seed..bytes.len()).step_by(3 + seed * 11) {
                    bytes[at] = bytes[at].wrapping_mul(31).wrapping_add(u8::try_from(seed).unwrap());
                }
                fs::write(dir.path().join(file), &bytes).unwrap();
                Relations::read(dir.path()).name_of("base/5/16390");
            }
            fs::write(dir.path().join(file), &whole).unwrap();
        }
        assert_eq!(Relations::read(dir.path()).name_of("base/5/16390").as_deref(), Some("shop.public.orders"));
    }
}
