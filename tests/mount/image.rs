//! The namespace as of one moment while it is being changed (R17). No mount: the changes are made as the kernel would ask for them.

use crate::server;
use heatfs::namespace::{Caller, Changes, Namespace, ROOT_INODE, RenameMode};
use heatfs::units::FileId;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 1 };
const MUTATORS: usize = 3;
const IMAGES: u64 = 60;

/// What a path is: its mode, and the id of a regular file.
type Tree = BTreeMap<String, (u32, Option<FileId>)>;

/// A mutator's own part of the tree, and what it will be once the change under way is done.
#[derive(Clone, Default)]
struct Model {
    now: Tree,
    next: Option<Tree>,
}

/// xorshift64*: the same changes on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % bound
    }
}

/// Changes one directory of the tree at random, from one thread, as one application would.
struct Mutator<'a> {
    namespace: &'a Namespace,
    model: &'a Mutex<Model>,
    root: String,
    /// The kernel's numbers of the directories that exist.
    directories: BTreeMap<String, u64>,
    random: Random,
}

impl Mutator<'_> {
    /// Tells what the change will make of the tree, makes it, and tells that it is done.
    fn change(&self, edit: impl FnOnce(&mut Tree), make: impl FnOnce() -> Option<(String, FileId)>) {
        let mut next = self.model.lock().unwrap().now.clone();
        edit(&mut next);
        self.model.lock().unwrap().next = Some(next.clone());
        if let Some((path, file)) = make() {
            next.entry(path).and_modify(|(_, id)| *id = Some(file));
        }
        *self.model.lock().unwrap() = Model { now: next, next: None };
    }

    fn parent_of(&self, path: &str) -> (u64, OsString) {
        let (parent, name) = path.rsplit_once('/').expect("below the mutator's root");
        (self.directories[parent], name.into())
    }

    fn pick(&mut self, wanted: impl Fn(&str, &(u32, Option<FileId>)) -> bool) -> Option<String> {
        let model = self.model.lock().unwrap();
        let paths: Vec<&String> =
            model.now.iter().filter(|(path, kind)| wanted(path, kind)).map(|(path, _)| path).collect();
        paths.get(self.random.below(paths.len().max(1))).map(|path| (*path).clone())
    }

    fn new_path(&mut self) -> String {
        let at = self.random.below(self.directories.len());
        let directory = self.directories.keys().nth(at).expect("counted").clone();
        format!("{directory}/n{}", self.random.below(12))
    }

    fn step(&mut self) {
        let is_file = |kind: &(u32, Option<FileId>)| kind.0 & libc::S_IFMT == libc::S_IFREG;
        let path = self.new_path();
        let known = self.model.lock().unwrap().now.get(&path).copied();
        match self.random.below(10) {
            0..=3 if known.is_none() => self.create(&path),
            4 if known.is_none() && path.matches('/').count() < 4 => self.make_directory(&path),
            5 if known.is_some_and(|kind| is_file(&kind)) => {
                let (parent, name) = self.parent_of(&path);
                self.change(
                    |tree| {
                        tree.remove(&path);
                    },
                    || {
                        self.namespace.unlink(parent, &name).unwrap();
                        None
                    },
                );
            }
            6 | 7 => {
                if let Some(from) = self.pick(|_, kind| is_file(kind))
                    && from != path
                    && known.is_none_or(|kind| is_file(&kind))
                {
                    self.rename(&from, &path);
                }
            }
            8 => {
                let root = self.root.clone();
                if let Some(from) = self.pick(|path, kind| !is_file(kind) && path != root)
                    && known.is_none()
                    && !path.starts_with(&format!("{from}/"))
                    && path != from
                {
                    self.rename(&from, &path);
                }
            }
            _ => {
                if let Some(path) = self.pick(|_, kind| is_file(kind)) {
                    self.change_mode(&path);
                }
            }
        }
    }

    fn create(&self, path: &str) {
        let (parent, name) = self.parent_of(path);
        self.change(
            |tree| {
                tree.insert(path.to_owned(), (libc::S_IFREG | 0o600, None));
            },
            || {
                let linked = self.namespace.create(parent, &name, CALLER, 0o600, 0).unwrap();
                self.namespace.release(linked.node.inode, 1);
                Some((path.to_owned(), linked.node.file().unwrap().id()))
            },
        );
    }

    fn make_directory(&mut self, path: &str) {
        let (parent, name) = self.parent_of(path);
        let inode = AtomicU64::new(0);
        self.change(
            |tree| {
                tree.insert(path.to_owned(), (libc::S_IFDIR | 0o700, None));
            },
            || {
                let linked = self.namespace.make_directory(parent, &name, CALLER, 0o700, 0).unwrap();
                inode.store(linked.node.inode, Ordering::Relaxed);
                None
            },
        );
        self.directories.insert(path.to_owned(), inode.into_inner());
    }

    fn rename(&mut self, from: &str, to: &str) {
        let ((parent, name), (new_parent, new_name)) = (self.parent_of(from), self.parent_of(to));
        let moved = |path: &str| match path.strip_prefix(from) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{to}{rest}"),
            _ => path.to_owned(),
        };
        self.change(
            |tree| {
                tree.remove(to);
                *tree = tree.iter().map(|(path, kind)| (moved(path), *kind)).collect();
            },
            || {
                self.namespace.rename(parent, &name, new_parent, &new_name, RenameMode::Replace).unwrap();
                None
            },
        );
        self.directories = self.directories.iter().map(|(path, inode)| (moved(path), *inode)).collect();
    }

    fn change_mode(&mut self, path: &str) {
        let mode = 0o600 + u32::try_from(self.random.below(0o100)).unwrap();
        let (parent, name) = self.parent_of(path);
        let linked = self.namespace.lookup(parent, &name).unwrap();
        self.change(
            |tree| {
                tree.entry(path.to_owned()).and_modify(|kind| kind.0 = libc::S_IFREG | mode);
            },
            || {
                let changes = Changes { mode: Some(mode), ..Changes::default() };
                self.namespace.change(linked.node.inode, CALLER, changes).unwrap();
                None
            },
        );
        self.namespace.release(linked.node.inode, 1);
    }
}

fn subtree(tree: &Tree, root: &str) -> Tree {
    let below = format!("{root}/");
    tree.iter().filter(|(path, _)| *path == root || path.starts_with(&below)).map(|(p, k)| (p.clone(), *k)).collect()
}

/// The id of a file that is being created is not known to the test before the call returns.
fn same(seen: &Tree, expected: &Tree) -> bool {
    seen.len() == expected.len()
        && seen.iter().zip(expected).all(|((path, kind), (expected_path, expected_kind))| {
            path == expected_path && kind.0 == expected_kind.0 && expected_kind.1.is_none_or(|id| kind.1 == Some(id))
        })
}

fn volume(base: &Path) -> (Arc<heatfs::volume::Volume>, Arc<Namespace>) {
    server::create(base);
    server::open(base)
}

#[test]
fn r17_an_image_is_of_its_moment_whatever_changes_meanwhile() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("NOT RUN: needs root");
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let (volume, namespace) = volume(base.path());
    let still = namespace.make_directory(ROOT_INODE, OsStr::new("a-still"), CALLER, 0o755, 0).unwrap().node.inode;
    for at in 0..400 {
        namespace.create(still, OsStr::new(&format!("f{at}")), CALLER, 0o640, 0).unwrap();
    }
    let models: Vec<Mutex<Model>> = (0..MUTATORS).map(|_| Mutex::default()).collect();
    let (steps, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut steps_during_walks = 0;
    std::thread::scope(|scope| {
        for (number, model) in models.iter().enumerate() {
            let root = format!("m{number}");
            let linked = namespace.make_directory(ROOT_INODE, OsStr::new(&root), CALLER, 0o700, 0).unwrap();
            model.lock().unwrap().now.insert(root.clone(), (libc::S_IFDIR | 0o700, None));
            let directories = BTreeMap::from([(root.clone(), linked.node.inode)]);
            let random = Random(number as u64 + 1);
            let mut mutator = Mutator { namespace: &namespace, model, root, directories, random };
            let (steps, done) = (&steps, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    mutator.step();
                    steps.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..IMAGES {
            let image = namespace.begin_image().unwrap();
            assert!(namespace.begin_image().is_err(), "one at a time");
            let expected: Vec<Model> =
                image.moment(|| Ok(models.iter().map(|model| model.lock().unwrap().clone()).collect())).unwrap();
            let before = steps.load(Ordering::Relaxed);
            let mut seen = Tree::new();
            let mut last: Option<Vec<Vec<u8>>> = None;
            image
                .walk(&mut |entry| {
                    let components: Vec<Vec<u8>> = entry.path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
                    assert!(last.as_ref().is_none_or(|last| *last < components), "in order of names");
                    last = Some(components);
                    let file = entry.inode.file.clone().map(|file| file.expect("every file is trusted"));
                    seen.insert(String::from_utf8(entry.path.to_vec()).unwrap(), (entry.inode.mode, file));
                    Ok(())
                })
                .unwrap();
            steps_during_walks += steps.load(Ordering::Relaxed) - before;
            assert_eq!(subtree(&seen, "a-still").len(), 401, "round {round}");
            for (number, model) in expected.iter().enumerate() {
                let seen = subtree(&seen, &format!("m{number}"));
                let fits = same(&seen, &model.now) || model.next.as_ref().is_some_and(|next| same(&seen, next));
                if !fits {
                    done.store(true, Ordering::Relaxed);
                    panic!("round {round}, m{number}:\nseen {seen:#?}\nnow {:#?}\nnext {:#?}", model.now, model.next);
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(steps_during_walks > IMAGES, "only {steps_during_walks} changes came between");
    namespace.close();
    volume.shut_down().unwrap();
}
