//! Random schemas, and rows for any schema.

use std::sync::Arc;

use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow_array::builder::StringBuilder;
use arrow_array::types::TimestampMicrosecondType;
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeListArray,
    Float32Array, Float64Array, Int32Array, Int64Array, LargeStringArray, ListArray,
    PrimitiveArray, RecordBatch, StructArray, UInt8Array,
};
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// Names of columns. Lance refuses dots in them and cannot scan back-ticks.
const NAMES: &[&str] = &[
    "x",
    "name",
    "Mixed Case",
    "order",
    "SELECT",
    "group",
    "Ünïcode",
    "with space",
    "a-b",
    "1st",
    "semi;colon",
    "from",
    "_under",
    "日本",
    "UPPER",
    "upper",
    "X",
    "it's",
    "100%",
    "count",
    "null",
    "a\"b",
    "tab\there",
    "true",
    "interval",
];

/// A name of a column that is none of `taken`.
pub fn new_name(random: &mut StdRng, taken: &[String]) -> String {
    loop {
        let name = *NAMES.choose(random).unwrap();
        // Some readers of lance do not tell cases apart.
        if !taken
            .iter()
            .any(|t| t.to_lowercase() == name.to_lowercase())
        {
            return name.to_string();
        }
    }
}

/// A random type.
pub fn new_type(random: &mut StdRng) -> DataType {
    let item = |t| Arc::new(Field::new("item", t, true));
    let pair = || {
        Fields::from(vec![
            Field::new("a", DataType::Int64, true),
            Field::new("In Side", DataType::Utf8, true),
        ])
    };
    match random.random_range(0..24) {
        0..=4 => DataType::Int64,
        5 => DataType::Int32,
        6 => DataType::UInt8,
        7 => DataType::Float64,
        8 => DataType::Float32,
        9 => DataType::Boolean,
        10..=12 => DataType::Utf8,
        13 => DataType::LargeUtf8,
        14 => DataType::Binary,
        15 => DataType::Timestamp(TimeUnit::Microsecond, None),
        16 => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        17 => DataType::Date32,
        18 => DataType::Decimal128(12, 3),
        19 => DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
        20 => DataType::List(item(DataType::Int32)),
        21 => DataType::List(item(DataType::Utf8)),
        22 => match random.random_range(0..3) {
            0 => DataType::Struct(pair()),
            1 => DataType::Struct(Fields::from(vec![
                Field::new("deep", DataType::Struct(pair()), true),
                Field::new("many", DataType::List(item(DataType::Int64)), true),
            ])),
            _ => DataType::List(item(DataType::Struct(pair()))),
        },
        _ => DataType::FixedSizeList(item(DataType::Float32), 4),
    }
}

/// A schema of a key and some other columns.
pub fn new_schema(random: &mut StdRng, key: &str) -> SchemaRef {
    let mut taken = vec![key.to_string()];
    let mut fields = vec![Field::new(key, DataType::Int64, true)];
    for _ in 0..random.random_range(2..7) {
        let name = new_name(random, &taken);
        fields.push(Field::new(&name, new_type(random), true));
        taken.push(name);
    }
    // The key is not always the first one.
    let at = random.random_range(0..fields.len());
    fields.swap(0, at);
    Arc::new(Schema::new(fields))
}

/// Rows of these ids: all that depends on anything depends on the id, the
/// column's name, and `variant`.
pub fn rows(schema: &SchemaRef, key: &str, ids: &[i64], variant: u64) -> RecordBatch {
    let columns: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .map(|field| {
            if field.name() == key {
                return Arc::new(Int64Array::from(ids.to_vec())) as ArrayRef;
            }
            let salt = field.name().bytes().fold(variant, |h, b| mix(h, b.into()));
            // Some columns are null-heavy, some have no nulls at all.
            let nulls = [0, 10, 10, 50, 97][(salt % 5) as usize];
            values(field.data_type(), salt, nulls, ids)
        })
        .collect();
    RecordBatch::try_new(schema.clone(), columns).unwrap()
}

fn mix(a: u64, b: u64) -> u64 {
    let mut h = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_add(0x5851_f42d_4c95_7f2d);
    h = (h ^ (h >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}

fn values(of: &DataType, salt: u64, nulls: u64, ids: &[i64]) -> ArrayRef {
    let drawn: Vec<Option<u64>> = ids
        .iter()
        .map(|id| mix(salt, *id as u64))
        .map(|h| (h % 100 >= nulls).then_some(h >> 8))
        .collect();
    let each = || drawn.iter().copied();
    let text = |h: u64| match h % 50 {
        0 => String::new(),
        1 => "ß 'quoted' \"twice\" % _".to_string(),
        n => format!("row {n}"),
    };
    let present = || NullBuffer::from_iter(drawn.iter().map(Option::is_some));
    match of {
        DataType::Int64 => Arc::new(Int64Array::from_iter(
            each().map(|h| h.map(|h| (h % 200) as i64 - 50)),
        )),
        DataType::Int32 => Arc::new(Int32Array::from_iter(
            each().map(|h| h.map(|h| (h % 90) as i32 - 20)),
        )),
        DataType::UInt8 => Arc::new(UInt8Array::from_iter(each().map(|h| h.map(|h| h as u8)))),
        // Multiples of a quarter: their sums are the same in any order.
        DataType::Float64 => Arc::new(Float64Array::from_iter(
            each().map(|h| h.map(|h| (h % 400) as f64 / 4.0 - 20.0)),
        )),
        DataType::Float32 => Arc::new(Float32Array::from_iter(
            each().map(|h| h.map(|h| (h % 400) as f32 / 4.0 - 20.0)),
        )),
        DataType::Boolean => Arc::new(BooleanArray::from_iter(
            each().map(|h| h.map(|h| h % 2 == 0)),
        )),
        DataType::Utf8 => {
            let mut builder = StringBuilder::new();
            each().for_each(|h| builder.append_option(h.map(text)));
            Arc::new(builder.finish())
        }
        DataType::LargeUtf8 => Arc::new(LargeStringArray::from_iter(each().map(|h| h.map(text)))),
        DataType::Binary => {
            Arc::new(BinaryArray::from_iter(each().map(|h| {
                h.map(|h| h.to_le_bytes()[..(h % 8) as usize].to_vec())
            })))
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => Arc::new(
            PrimitiveArray::<TimestampMicrosecondType>::from_iter(
                each().map(|h| h.map(|h| (h % 4_000_000_000_000_000) as i64)),
            )
            .with_timezone_opt(zone.clone()),
        ),
        DataType::Date32 => Arc::new(Date32Array::from_iter(
            each().map(|h| h.map(|h| (h % 30) as i32 + 19_000)),
        )),
        DataType::Decimal128(precision, scale) => Arc::new(
            Decimal128Array::from_iter(
                each().map(|h| h.map(|h| (h % 1_000_000) as i128 - 500_000)),
            )
            .with_precision_and_scale(*precision, *scale)
            .unwrap(),
        ),
        DataType::Dictionary(_, _) => {
            let colours = ["red", "green", "blue", ""];
            let mut builder = StringBuilder::new();
            each().for_each(|h| builder.append_option(h.map(|h| colours[(h % 4) as usize])));
            arrow_cast::cast(&builder.finish(), of).unwrap()
        }
        DataType::List(item) => {
            let lengths: Vec<usize> = each().map(|h| h.map_or(0, |h| (h % 4) as usize)).collect();
            let children: Vec<i64> = ids
                .iter()
                .zip(&lengths)
                .flat_map(|(id, n)| (0..*n as i64).map(move |i| id * 16 + i))
                .collect();
            Arc::new(ListArray::new(
                item.clone(),
                OffsetBuffer::from_lengths(lengths),
                values(item.data_type(), mix(salt, 1), 20, &children),
                Some(present()),
            ))
        }
        DataType::FixedSizeList(item, size) => {
            let children: Vec<i64> = ids
                .iter()
                .flat_map(|id| (0..i64::from(*size)).map(move |i| id * 16 + i))
                .collect();
            Arc::new(FixedSizeListArray::new(
                item.clone(),
                *size,
                values(item.data_type(), mix(salt, 2), 0, &children),
                Some(present()),
            ))
        }
        DataType::Struct(fields) => {
            let children = fields
                .iter()
                .zip(3..)
                .map(|(field, n)| values(field.data_type(), mix(salt, n), 15, ids))
                .collect();
            Arc::new(StructArray::new(fields.clone(), children, Some(present())))
        }
        other => arrow_array::new_null_array(other, ids.len()),
    }
}

/// Whether arithmetic can be done with values of the type.
pub fn is_number(of: &DataType) -> bool {
    matches!(of, DataType::Int64 | DataType::Int32 | DataType::Float64)
}

/// Whether `of` is one of the types of text.
pub fn is_text(of: &DataType) -> bool {
    matches!(of, DataType::Utf8 | DataType::LargeUtf8)
}
