//! What a piece of the view was computed from, as a hash.
//!
//! Two equal fingerprints mean: the same rows come out. In goes whatever the
//! view's columns read, and nothing else, so that a change to a column that
//! the view does not read leaves its fingerprints as they are:
//!
//! - of the definition: its canonical SQL and [`ENGINE_VERSION`];
//! - of each column read: its name, field id and type. (Field ids are used
//!   again after a column is dropped, and a rename touches no fragment.)
//! - of each fragment: for each of those fields, the data files that hold it
//!   or a child of it (a field that was rewritten is tombstoned in the old
//!   file), or that none does; the deletion file; overlays on those fields;
//!   the row ids, where the view holds them;
//! - of a slice of a huge fragment: the same, with the offsets of the rows
//!   deleted within the slice in the deletion file's place.
//!
//! Out stay file sizes and the created/updated version columns, which move
//! without any row changing.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use arrow_schema::DataType;
use lance_core::datatypes::{Field, Schema};
use lance_table::format::{DataFile, Fragment};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Raised when the engine computes other rows from the same input, so that
/// nothing an older engine claimed is kept.
pub const ENGINE_VERSION: u32 = 5;

/// 128 bits of SHA-256 in lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Fingerprint {
    /// The fingerprint that is written so.
    pub fn named(text: &str) -> Fingerprint {
        Fingerprint(text.to_string())
    }

    /// The fingerprint of `parts` in their order.
    pub fn of_all<'a>(parts: impl IntoIterator<Item = &'a Fingerprint>) -> Fingerprint {
        let mut hasher = Hasher::new("all");
        for part in parts {
            hasher.text(&part.0);
        }
        hasher.finish()
    }

    /// The fingerprint of a text.
    pub fn of_text(text: &str) -> Fingerprint {
        let mut hasher = Hasher::new("text");
        hasher.text(text);
        hasher.finish()
    }
}

/// Feeds a hash with length-prefixed parts, so that no two sequences of parts
/// run into each other.
struct Hasher(Sha256);

impl Hasher {
    fn new(domain: &str) -> Self {
        let mut hasher = Hasher(Sha256::new());
        hasher.number(u64::from(ENGINE_VERSION));
        hasher.text(domain);
        hasher
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    fn finish(self) -> Fingerprint {
        Fingerprint(hex::encode(&self.0.finalize()[..16]))
    }
}

/// What a view reads of each row of its source.
#[derive(Clone, Debug)]
pub struct Reads {
    definition: Fingerprint,
    /// Each column read, with the ids of its field and all below it.
    columns: Vec<Vec<i32>>,
    fields: BTreeSet<i32>,
    /// Whether the view holds the source's row ids.
    row_ids: bool,
    stable_row_ids: bool,
    width: u64,
}

/// How many bytes a value of `data_type` has, where its type alone tells.
fn width(data_type: &DataType) -> u64 {
    match data_type {
        DataType::FixedSizeList(item, length) => {
            width(item.data_type()).saturating_mul((*length).max(0) as u64)
        }
        DataType::FixedSizeBinary(bytes) => (*bytes).max(0) as u64,
        DataType::Struct(fields) => fields.iter().map(|field| width(field.data_type())).sum(),
        other => other.primitive_width().unwrap_or(0) as u64,
    }
}

/// The column of `source` that a scan takes for `name`: where none is called just
/// so, one that is but for the case of its letters.
fn named<'a>(source: &'a Schema, name: &str) -> Option<&'a Field> {
    let mut fields = source.fields.iter();
    let exact = fields.clone().find(|field| field.name == name);
    exact.or_else(|| fields.find(|field| field.name.eq_ignore_ascii_case(name)))
}

impl Reads {
    /// What a view of canonical `definition` reads: the top-level `columns` of
    /// `source`, and the row ids if `row_ids`. A column that the source does
    /// not have counts as read and absent.
    pub fn new(
        definition: &str,
        source: &Schema,
        columns: &BTreeSet<String>,
        row_ids: bool,
        stable_row_ids: bool,
    ) -> Reads {
        let mut hasher = Hasher::new("definition");
        hasher.text(definition);
        hasher.number(u64::from(row_ids));
        hasher.number(u64::from(stable_row_ids));
        let mut found = Vec::new();
        for name in columns {
            hasher.text(name);
            match named(source, name) {
                Some(field) => {
                    let mut ids = Vec::new();
                    describe(field, &mut hasher, &mut ids);
                    found.push(ids);
                }
                None => hasher.text("absent"),
            }
        }
        let fields = found.iter().flatten().copied().collect();
        let read = columns.iter().filter_map(|name| named(source, name));
        Reads {
            definition: hasher.finish(),
            columns: found,
            fields,
            row_ids,
            stable_row_ids,
            width: read.map(|field| width(&field.data_type())).sum(),
        }
    }

    /// How many bytes the columns that are read have a row, as far as their
    /// types tell: texts and lists count nothing.
    pub fn width(&self) -> u64 {
        self.width
    }

    /// The fingerprint of the definition and the columns that it reads.
    pub fn definition(&self) -> &Fingerprint {
        &self.definition
    }

    /// The fingerprint of what the view reads of `fragment`.
    pub fn fragment(&self, fragment: &Fragment) -> Fingerprint {
        let mut hasher = self.base(fragment);
        if let Some(deleted) = &fragment.deletion_file {
            hasher.text("deleted");
            hasher.number(fragment.id);
            hasher.number(deleted.read_version);
            hasher.number(deleted.id);
            hasher.text(&format!("{:?}", deleted.file_type));
            hasher.number(deleted.base_id.map_or(u64::MAX, u64::from));
        }
        hasher.finish()
    }

    /// The fingerprints of what the view reads of each of the `slices` (row
    /// offsets) of `fragment`. `deleted` are the offsets of its deleted rows,
    /// ascending: a slice's fingerprint moves only with the rows in it.
    pub fn slices(
        &self,
        fragment: &Fragment,
        slices: &[Range<u64>],
        deleted: &[u32],
    ) -> Vec<Fingerprint> {
        let whole = self.base(fragment).finish();
        slices
            .iter()
            .map(|rows| {
                let mut hasher = Hasher::new("slice");
                hasher.text(&whole.0);
                hasher.number(rows.start);
                hasher.number(rows.end);
                let from = deleted.partition_point(|at| u64::from(*at) < rows.start);
                let to = deleted.partition_point(|at| u64::from(*at) < rows.end);
                for at in &deleted[from..to] {
                    hasher.number(u64::from(*at));
                }
                hasher.finish()
            })
            .collect()
    }

    /// The ids of the fields that the view reads and `fragment` holds.
    pub fn held(&self, fragment: &Fragment) -> BTreeSet<i32> {
        fragment
            .files
            .iter()
            .flat_map(|file| file.fields.iter())
            .filter(|field| self.fields.contains(field))
            .copied()
            .collect()
    }

    /// Whether rows that move to another fragment, unchanged, give the same
    /// rows of the view.
    pub fn survives_moving(&self) -> bool {
        !self.row_ids || self.stable_row_ids
    }

    /// All of `fragment` but its deletions.
    fn base(&self, fragment: &Fragment) -> Hasher {
        let mut hasher = Hasher::new("fragment");
        hasher.text(&self.definition.0);
        hasher.number(fragment.physical_rows.map_or(u64::MAX, |rows| rows as u64));
        for ids in &self.columns {
            hasher.number(ids.len() as u64);
            for id in ids {
                let holders: Vec<(&DataFile, usize)> = fragment
                    .files
                    .iter()
                    .filter_map(|file| {
                        let at = file.fields.iter().position(|field| field == id)?;
                        Some((file, at))
                    })
                    .collect();
                hasher.number(holders.len() as u64);
                for (file, at) in holders {
                    hash_file(&mut hasher, file);
                    let column = file.column_indices.get(at).copied().unwrap_or(i32::MIN);
                    hasher.number(column as u32 as u64);
                }
            }
        }
        // A view that reads no column (SELECT 1) still has a row for each row.
        if self.columns.is_empty() {
            for file in &fragment.files {
                hash_file(&mut hasher, file);
            }
        }
        for overlay in &fragment.overlays {
            if overlay
                .data_file
                .fields
                .iter()
                .any(|f| self.fields.contains(f))
            {
                hasher.text("overlay");
                hash_file(&mut hasher, &overlay.data_file);
                hasher.text(&serde_json::to_string(&overlay.coverage).unwrap_or_default());
            }
        }
        if self.row_ids {
            if self.stable_row_ids {
                hasher.text(&serde_json::to_string(&fragment.row_id_meta).unwrap_or_default());
            } else {
                hasher.number(fragment.id);
            }
        }
        hasher
    }
}

fn hash_file(hasher: &mut Hasher, file: &DataFile) {
    hasher.text(&file.path);
    hasher.number(u64::from(file.file_major_version));
    hasher.number(u64::from(file.file_minor_version));
    hasher.number(file.base_id.map_or(u64::MAX, u64::from));
}

fn describe(field: &Field, hasher: &mut Hasher, ids: &mut Vec<i32>) {
    hasher.text(&field.name);
    hasher.number(field.id as u32 as u64);
    hasher.text(&format!("{}", field.data_type()));
    hasher.number(field.children.len() as u64);
    ids.push(field.id);
    for child in &field.children {
        describe(child, hasher, ids);
    }
}

#[cfg(test)]
mod tests {
    use arrow_schema::{DataType, Field as ArrowField, Schema as ArrowSchema};
    use lance_file::version::ConcreteFileVersion;
    use lance_table::format::{DeletionFile, DeletionFileType};

    use super::*;

    fn schema() -> Schema {
        let mut schema = Schema::try_from(&ArrowSchema::new(vec![
            ArrowField::new("a", DataType::Int64, true),
            ArrowField::new("b", DataType::Utf8, true),
        ]))
        .unwrap();
        schema.set_field_id(None);
        schema
    }

    fn file(path: &str, fields: &[i32]) -> DataFile {
        DataFile::new(
            path,
            fields.to_vec(),
            (0..fields.len() as i32).collect::<Vec<_>>(),
            ConcreteFileVersion::V2_0,
            None,
            None,
        )
    }

    fn fragment(files: Vec<DataFile>) -> Fragment {
        let mut fragment = Fragment::new(7);
        fragment.files = files;
        fragment.physical_rows = Some(10);
        fragment
    }

    fn reads(columns: &[&str]) -> Reads {
        let columns = columns.iter().map(|c| c.to_string()).collect();
        Reads::new("SELECT a FROM t", &schema(), &columns, false, false)
    }

    #[test]
    fn a_column_that_is_not_read_does_not_count() {
        let reads = reads(&["a"]);
        let before = fragment(vec![file("one", &[0, 1])]);
        let added = fragment(vec![file("one", &[0, 1]), file("two", &[2])]);
        let rewritten = fragment(vec![file("one", &[0, -2]), file("two", &[1])]);
        assert_eq!(reads.fragment(&before), reads.fragment(&added));
        assert_eq!(reads.fragment(&before), reads.fragment(&rewritten));
    }

    #[test]
    fn a_column_that_is_read_counts_when_it_is_rewritten() {
        let reads = reads(&["a"]);
        let before = fragment(vec![file("one", &[0, 1])]);
        let rewritten = fragment(vec![file("one", &[-2, 1]), file("two", &[0])]);
        assert_ne!(reads.fragment(&before), reads.fragment(&rewritten));
    }

    #[test]
    fn a_column_that_is_called_so_but_for_the_case_of_its_letters_is_read() {
        let before = fragment(vec![file("one", &[0, 1])]);
        let rewritten = fragment(vec![file("one", &[-2, 1]), file("two", &[0])]);
        let reads = reads(&["A"]);
        assert_ne!(reads.fragment(&before), reads.fragment(&rewritten));
        assert_eq!(reads.width(), 8);
        // Where there are both, it is the one that is called just so.
        let both = ["a", "A"].map(|name| ArrowField::new(name, DataType::Int64, true));
        let mut both = Schema::try_from(&ArrowSchema::new(both.to_vec())).unwrap();
        both.set_field_id(None);
        let id = |name| named(&both, name).map(|field| field.id);
        assert_eq!((id("a"), id("A"), id("b")), (Some(0), Some(1), None));
    }

    #[test]
    fn a_deletion_counts_and_a_file_size_does_not() {
        let reads = reads(&["a"]);
        let before = fragment(vec![file("one", &[0, 1])]);
        let mut deleted = before.clone();
        deleted.deletion_file = Some(DeletionFile {
            read_version: 3,
            id: 1,
            file_type: DeletionFileType::Array,
            num_deleted_rows: Some(1),
            base_id: None,
        });
        assert_ne!(reads.fragment(&before), reads.fragment(&deleted));
        let mut sized = before.clone();
        sized.files[0] = DataFile::new(
            "one",
            vec![0, 1],
            vec![0, 1],
            ConcreteFileVersion::V2_0,
            std::num::NonZero::new(99),
            None,
        );
        assert_eq!(reads.fragment(&before), reads.fragment(&sized));
    }

    #[test]
    fn a_reused_field_id_of_another_type_counts() {
        let mut other = schema();
        other.fields[0] = Field::try_from(&ArrowField::new("a", DataType::Utf8, true)).unwrap();
        other.fields[0].id = 0;
        let columns: BTreeSet<String> = ["a".to_string()].into();
        let one = Reads::new("q", &schema(), &columns, false, false);
        let two = Reads::new("q", &other, &columns, false, false);
        assert_ne!(one.definition(), two.definition());
        let same = fragment(vec![file("one", &[0, 1])]);
        assert_ne!(one.fragment(&same), two.fragment(&same));
    }

    #[test]
    fn the_fragment_id_counts_only_where_row_ids_are_addresses() {
        let columns: BTreeSet<String> = ["a".to_string()].into();
        let mut moved = fragment(vec![file("one", &[0, 1])]);
        let before = moved.clone();
        moved.id = 8;
        let without = Reads::new("q", &schema(), &columns, false, false);
        assert_eq!(without.fragment(&before), without.fragment(&moved));
        let addresses = Reads::new("q", &schema(), &columns, true, false);
        assert_ne!(addresses.fragment(&before), addresses.fragment(&moved));
        let stable = Reads::new("q", &schema(), &columns, true, true);
        assert_eq!(stable.fragment(&before), stable.fragment(&moved));
    }

    #[test]
    fn a_slice_moves_only_with_its_own_rows() {
        let reads = reads(&["a"]);
        let huge = fragment(vec![file("one", &[0, 1])]);
        let slices = [0..4, 4..10];
        let before = reads.slices(&huge, &slices, &[1, 8]);
        let after = reads.slices(&huge, &slices, &[1, 4, 8]);
        assert_eq!(before[0], after[0]);
        assert_ne!(before[1], after[1]);
        assert_ne!(before[0], before[1]);
        // Which file says what is deleted does not matter, only what it says.
        let mut deleted = huge.clone();
        deleted.deletion_file = Some(DeletionFile {
            read_version: 3,
            id: 1,
            file_type: DeletionFileType::Array,
            num_deleted_rows: Some(2),
            base_id: None,
        });
        assert_eq!(reads.slices(&deleted, &slices, &[1, 8]), before);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let a = [Fingerprint::of_text("ab"), Fingerprint::of_text("c")];
        let b = [Fingerprint::of_text("a"), Fingerprint::of_text("bc")];
        assert_ne!(Fingerprint::of_all(&a), Fingerprint::of_all(&b));
    }
}
