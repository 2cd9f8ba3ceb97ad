//! What stands of a view: which of its files are whole in one of its Lance
//! manifests, and so which claims are true of it.

use std::collections::{HashMap, HashSet};

use lance_core::datatypes::Schema;
use lance_table::format::{DataFile, Fragment};

use super::ledger::{Claim, Held, data_path, held};

/// The columns of a view that a refresh computes, as its files know them.
#[derive(Clone, Debug)]
pub struct Columns {
    /// Field ids that hold values.
    fields: HashSet<i32>,
}

impl Columns {
    /// The columns of these `names` in a view's `schema`.
    pub fn new<'a>(schema: &Schema, names: impl Iterator<Item = &'a str>) -> Columns {
        let mut fields = HashSet::new();
        for name in names {
            if let Some(field) = schema.fields.iter().find(|f| f.name == name) {
                collect(field, &mut fields);
            }
        }
        Columns { fields }
    }

    /// The file of `fragment` that is *whole*: without overlays, every field of
    /// the columns live in it. Nobody changed a value. Which rows a deletion file
    /// takes out is for the claim to say too.
    pub fn whole<'a>(&self, fragment: &'a Fragment) -> Option<(&'a DataFile, Held)> {
        let elsewhere = fragment.deletion_file.as_ref();
        if elsewhere.is_some_and(|file| file.base_id.is_some()) || !fragment.overlays.is_empty() {
            return None;
        }
        let mut files = fragment.files.iter();
        let file = files.find(|file| self.fields.iter().all(|id| file.fields.contains(id)))?;
        Some((file, Held::new(fragment, file)))
    }
}

/// Which of a view's files are whole, in one of its Lance manifests.
pub struct Standing {
    /// For each file that is whole and there once: the id of its fragment.
    whole: HashMap<Held, u64>,
    fragments: HashSet<u64>,
}

impl Standing {
    /// Looks at the fragments of a view whose `columns` a refresh computes.
    pub fn new(fragments: &[Fragment], columns: &Columns) -> Standing {
        let mut whole: HashMap<Held, u64> = HashMap::new();
        let mut seen: HashSet<&str> = HashSet::new();
        let mut twice: HashSet<&str> = HashSet::new();
        for fragment in fragments {
            for file in &fragment.files {
                if !seen.insert(&file.path) {
                    twice.insert(&file.path);
                }
            }
            if let Some((_, held)) = columns.whole(fragment) {
                whole.insert(held, fragment.id);
            }
        }
        whole.retain(|held, _| !twice.contains(held.file.as_str()));
        Standing {
            whole,
            fragments: fragments.iter().map(|f| f.id).collect(),
        }
    }

    /// The ids of the fragments that `claim`'s files are in now, if all of
    /// them are whole.
    pub fn fragments_of(&self, claim: &Claim) -> Option<Vec<u64>> {
        self.ids(&claim.fragments)
    }

    /// The ids that `fragments` of a claim have now, if all of them are there
    /// as they say, whole.
    pub fn ids(&self, fragments: &[Fragment]) -> Option<Vec<u64>> {
        let ids = fragments.iter().map(|f| self.whole.get(&held(f)?).copied());
        ids.collect()
    }

    /// Takes out what has one of the files at `paths`, relative to the view's
    /// folder: they are gone, for all that the manifest says.
    pub(super) fn lose(&mut self, paths: &HashSet<String>) {
        let is_there = |held: &Held| {
            let less = held.less.as_ref();
            !paths.contains(&data_path(&held.file)) && less.is_none_or(|less| !paths.contains(less))
        };
        if !paths.is_empty() {
            self.whole.retain(|held, _| is_there(held));
        }
    }

    /// The ids of all fragments.
    pub fn fragments(&self) -> &HashSet<u64> {
        &self.fragments
    }

    /// The ids of the fragments that none of `claims` accounts for.
    pub fn unaccounted<'a>(&self, claims: impl Iterator<Item = &'a Claim>) -> Vec<u64> {
        let accounted: HashSet<u64> = claims
            .filter_map(|claim| self.fragments_of(claim))
            .flatten()
            .collect();
        let mut rest: Vec<u64> = self.fragments.difference(&accounted).copied().collect();
        rest.sort_unstable();
        rest
    }
}

/// Field ids that hold values: those of leaves, and of what is one column with all
/// that is in it.
fn collect(field: &lance_core::datatypes::Field, ids: &mut HashSet<i32>) {
    // Data files of version 2 list the leaves alone or every level, by
    // encoding; the leaves are in both. Of a blob and a packed struct they list
    // just that.
    if field.children.is_empty() || field.is_blob() || field.is_packed_struct() {
        ids.insert(field.id);
        return;
    }
    for child in &field.children {
        collect(child, ids);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use arrow_schema::{DataType, Field, Schema as ArrowSchema};
    use lance_file::version::ConcreteFileVersion;
    use lance_table::format::{DeletionFile, DeletionFileType};

    use super::*;
    use crate::engine::fingerprint::Fingerprint;

    pub fn columns() -> Columns {
        Columns::new(&schema(), ["a", "b"].into_iter())
    }

    fn schema() -> Schema {
        let mut schema = Schema::try_from(&ArrowSchema::new(vec![
            Field::new("a", DataType::Int64, true),
            Field::new("b", DataType::Utf8, true),
        ]))
        .unwrap();
        schema.set_field_id(None);
        schema
    }

    pub fn file(path: &str, fields: &[i32]) -> DataFile {
        let columns: Vec<i32> = (0..fields.len() as i32).collect();
        DataFile::new(
            path,
            fields.to_vec(),
            columns,
            ConcreteFileVersion::V2_0,
            None,
            None,
        )
    }

    fn fragment(id: u64, files: Vec<DataFile>) -> Fragment {
        let mut fragment = Fragment::new(id);
        fragment.files = files;
        fragment
    }

    /// `fragment` less the rows in a deletion file of this `id`.
    pub fn less(mut fragment: Fragment, id: u64) -> Fragment {
        fragment.deletion_file = Some(DeletionFile {
            read_version: 1,
            id,
            file_type: DeletionFileType::Array,
            num_deleted_rows: None,
            base_id: None,
        });
        fragment
    }

    pub fn claim(path: &str) -> Claim {
        Claim {
            inputs: vec![Fingerprint::of_text(path)],
            refresh: "r".into(),
            rows: 1,
            bytes: 1,
            fragments: vec![fragment(0, vec![file(path, &[0, 1])])],
            of: Vec::new(),
        }
    }

    fn standing(fragments: &[Fragment]) -> Standing {
        Standing::new(fragments, &columns())
    }

    #[test]
    fn a_file_in_the_manifest_once_and_untouched_is_whole() {
        let now = standing(&[fragment(4, vec![file("x", &[0, 1])])]);
        assert_eq!(now.fragments_of(&claim("x")), Some(vec![4]));
        assert_eq!(now.fragments_of(&claim("y")), None);
        assert_eq!(now.unaccounted([claim("y")].iter()), [4]);
        assert!(now.unaccounted([claim("x")].iter()).is_empty());
    }

    #[test]
    fn what_has_a_file_that_is_gone_does_not_stand_and_is_accounted_for_by_none() {
        let whole = fragment(4, vec![file("x", &[0, 1])]);
        let mut trimmed = claim("x");
        trimmed.fragments = vec![less(whole.clone(), 1)];
        for (fragment, claim, gone) in [
            (whole.clone(), claim("x"), "data/x"),
            (less(whole.clone(), 1), trimmed.clone(), "data/x"),
            (less(whole, 1), trimmed, "_deletions/4-1-1.arrow"),
        ] {
            let mut now = standing(&[fragment]);
            now.lose(&HashSet::from(["data/y".to_string()]));
            assert_eq!(now.fragments_of(&claim), Some(vec![4]));
            now.lose(&HashSet::from([gone.to_string()]));
            assert_eq!(now.fragments_of(&claim), None);
            assert_eq!(now.unaccounted([claim].iter()), [4]);
        }
    }

    #[test]
    fn a_foreign_column_beside_it_does_not_matter() {
        let now = standing(&[fragment(4, vec![file("x", &[0, 1]), file("z", &[9])])]);
        assert_eq!(now.fragments_of(&claim("x")), Some(vec![4]));
    }

    #[test]
    fn deleted_rows_rewritten_columns_and_doubled_files_are_not_whole() {
        let deleted = less(fragment(4, vec![file("x", &[0, 1])]), 1);
        assert_eq!(standing(&[deleted]).fragments_of(&claim("x")), None);
        let rewritten = fragment(4, vec![file("x", &[0, -2]), file("z", &[1])]);
        assert_eq!(standing(&[rewritten]).fragments_of(&claim("x")), None);
        let doubled = [
            fragment(4, vec![file("x", &[0, 1])]),
            fragment(5, vec![file("x", &[0, 1])]),
        ];
        assert_eq!(standing(&doubled).fragments_of(&claim("x")), None);
    }

    #[test]
    fn a_claim_of_a_file_less_some_rows_stands_where_just_these_are_taken_out() {
        let whole = fragment(4, vec![file("x", &[0, 1])]);
        let mut trimmed = claim("x");
        trimmed.fragments = vec![less(whole.clone(), 1)];
        let ids = |now: Fragment| standing(&[now]).fragments_of(&trimmed);
        assert_eq!(ids(less(whole.clone(), 1)), Some(vec![4]));
        assert_eq!(ids(less(whole.clone(), 2)), None, "others took out more");
        assert_eq!(ids(whole.clone()), None, "the rows are there again");
        // A deletion file is one fragment's.
        let other = less(fragment(5, vec![file("x", &[0, 1])]), 1);
        assert_eq!(ids(other), None);
        // While it is staged, what it is of is looked at.
        trimmed.of = vec![whole.clone()];
        assert_eq!(standing(&[whole]).ids(&trimmed.of), Some(vec![4]));
        assert_eq!(trimmed.written(), ["_deletions/4-1-1.arrow"]);
        let all: Vec<String> = trimmed.paths().collect();
        assert_eq!(all, ["data/x", "_deletions/4-1-1.arrow"]);
        assert_eq!(claim("x").written(), ["data/x"]);
    }

    #[test]
    fn a_claim_without_rows_always_stands() {
        let mut empty = claim("x");
        empty.fragments.clear();
        assert_eq!(standing(&[]).fragments_of(&empty), Some(vec![]));
    }
}
