//! Rules and files: each file is judged by its path when its name is met, because the mover knows files by their ids only.

use crate::heat::forecast::FileClass;
use crate::policy::placement::Pin;
use crate::policy::profiles::class_of;
use crate::policy::rules::{Authority, Judgement, Rules};
use crate::units::FileId;
use parking_lot::{Mutex, RwLock};
use std::collections::{HashMap, HashSet};

/// Files with a judgement from which those that are gone are forgotten.
const JUDGED_MANY: usize = 1 << 16;

/// The rules, and what they say of the files met so far.
#[derive(Debug, Default)]
pub struct FileRules {
    rules: Rules,
    judged: RwLock<HashMap<FileId, Judgement>>,
    /// What kind of thing files hold that were met since the last plan, for the forecast.
    classes: Mutex<HashMap<FileId, FileClass>>,
}

impl FileRules {
    pub fn new(rules: Rules) -> FileRules {
        FileRules { rules, judged: RwLock::default(), classes: Mutex::default() }
    }

    /// A file was met under this path (relative to the mount); its former judgement, if it had another name, is void.
    pub fn note_path(&self, file: FileId, path: &str) {
        let class = class_of(path);
        if class != FileClass::Other {
            let mut classes = self.classes.lock();
            if classes.len() < JUDGED_MANY {
                classes.insert(file, class);
            }
        }
        match self.rules.judge(path) {
            Some(judgement) => {
                self.judged.write().insert(file, judgement);
            }
            None if self.judged.read().contains_key(&file) => {
                self.judged.write().remove(&file);
            }
            None => {}
        }
    }

    /// The classes that were noted since the last call.
    pub(super) fn take_classes(&self) -> HashMap<FileId, FileClass> {
        std::mem::take(&mut *self.classes.lock())
    }

    /// What the settings' rules say; they come before what users pin by hand.
    pub(super) fn by_rule(&self, file: FileId) -> Option<Pin> {
        self.find(file, |authority| matches!(authority, Authority::Rules(_)))
    }

    /// What a profile says, if no rule does.
    pub(super) fn by_profile(&self, file: FileId) -> Option<Pin> {
        self.find(file, |authority| matches!(authority, Authority::Profile(..)))
    }

    fn find(&self, file: FileId, wanted: impl Fn(&Authority) -> bool) -> Option<Pin> {
        self.judged.read().get(&file).filter(|found| wanted(&found.authority)).map(|found| found.pin)
    }

    /// In words, who decides about the file.
    pub(super) fn describe(&self, file: FileId) -> Option<String> {
        self.judged.read().get(&file).map(|found| self.rules.describe(&found.authority))
    }

    /// Forgets files that are gone, when there are many.
    pub(super) fn forget_gone(&self, known: impl FnOnce() -> HashSet<FileId>) {
        if self.judged.read().len() > JUDGED_MANY {
            let known = known();
            self.judged.write().retain(|file, _| known.contains(file));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::FileRules;
    use crate::policy::placement::Pin;
    use crate::policy::profiles::Profile;
    use crate::policy::rules::Rules;
    use crate::units::FileId;

    #[test]
    fn another_name_is_another_judgement() {
        let rules = Rules::new(Vec::new(), Profile::ALL.to_vec(), vec!["nvme".to_owned()]).unwrap();
        let files = FileRules::new(rules);
        files.note_path(FileId(1), "shop/#sql-1.ibd");
        assert!(matches!(files.by_profile(FileId(1)), Some(Pin::Within(bounds)) if !bounds.demoted));
        assert!(files.describe(FileId(1)).unwrap().contains("mariadb profile: a temporary file"));
        files.note_path(FileId(1), "shop/orders.ibd");
        assert_eq!((files.by_profile(FileId(1)), files.by_rule(FileId(1))), (None, None));
    }
}
