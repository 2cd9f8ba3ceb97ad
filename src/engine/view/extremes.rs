//! `min` and `max` of floating-point values, the same in whatever order these come.
//!
//! DataFusion's own, of groups, take a value that cannot be compared with the one
//! they have in its place: what they give of a group with a NaN depends on the order
//! of its rows, and so on how they are parted. Here the order is total: a NaN is
//! greater than all else, and zero than minus zero. DataFusion's then run over
//! whole numbers, the keys, that are in the same order as the values.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int64Array};
use arrow_schema::DataType;
use datafusion::common::Result;
use datafusion::functions_aggregate::min_max::{max_udaf, min_udaf};
use datafusion::prelude::SessionContext;
use datafusion_expr::function::AccumulatorArgs;
use datafusion_expr::utils::AggregateOrderSensitivity;
use datafusion_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, Signature,
};

/// The bits of the one NaN that stands for all.
const NAN: u64 = 0x7ff8 << 48;

/// Makes these the `min` and the `max` of queries in `context`.
pub(super) fn register(context: &SessionContext) {
    for known in [min_udaf(), max_udaf()] {
        context.register_udaf(AggregateUDF::new_from_impl(Extreme(known)));
    }
}

/// DataFusion's `min` or `max`, by keys where its values are floating-point ones.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Extreme(Arc<AggregateUDF>);

impl AggregateUDFImpl for Extreme {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn signature(&self) -> &Signature {
        self.0.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.0.return_type(types)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.0.coerce_types(types)
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.0.order_sensitivity()
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        self.0.reverse_udf()
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        self.0.accumulator(args)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.0.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(
        &self,
        args: AccumulatorArgs,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        let data_type = args.return_type().clone();
        if !data_type.is_floating() {
            return self.0.create_groups_accumulator(args);
        }
        let field = args.return_field.as_ref().clone();
        let keys = self.0.create_groups_accumulator(AccumulatorArgs {
            return_field: Arc::new(field.with_data_type(DataType::Int64)),
            ..args
        })?;
        Ok(Box::new(ByKeys { keys, data_type }))
    }
}

/// The extremes of groups of floating-point values.
struct ByKeys {
    /// Those of their keys.
    keys: Box<dyn GroupsAccumulator>,
    data_type: DataType,
}

impl ByKeys {
    /// The values of `keys`.
    fn values(&self, keys: &ArrayRef) -> Result<ArrayRef> {
        let values: Float64Array = keys.as_primitive::<Int64Type>().unary(value);
        Ok(arrow_cast::cast(&values, &self.data_type)?)
    }

    fn each_values(&self, keys: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
        keys.iter().map(|keys| self.values(keys)).collect()
    }
}

impl GroupsAccumulator for ByKeys {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        count: usize,
    ) -> Result<()> {
        self.keys
            .update_batch(&keys(values)?, groups, filter, count)
    }

    fn merge_batch(
        &mut self,
        states: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        count: usize,
    ) -> Result<()> {
        self.keys.merge_batch(&keys(states)?, groups, filter, count)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let found = self.keys.evaluate(emit_to)?;
        self.values(&found)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let found = self.keys.state(emit_to)?;
        self.each_values(&found)
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        self.each_values(&self.keys.convert_to_state(&keys(values)?, filter)?)
    }

    fn supports_convert_to_state(&self) -> bool {
        self.keys.supports_convert_to_state()
    }

    fn size(&self) -> usize {
        self.keys.size()
    }
}

/// The keys of each of `columns`, which hold floating-point values.
fn keys(columns: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
    let keys = columns.iter().map(|column| {
        // Every value of the narrower types is one of the widest.
        let values = arrow_cast::cast(column, &DataType::Float64)?;
        let keys: Int64Array = values.as_primitive::<Float64Type>().unary(key);
        Ok(Arc::new(keys) as ArrayRef)
    });
    keys.collect()
}

fn key(value: f64) -> i64 {
    let bits = match value.is_nan() {
        true => NAN,
        false => value.to_bits(),
    };
    flipped(bits as i64)
}

fn value(key: i64) -> f64 {
    f64::from_bits(flipped(key) as u64)
}

/// The bits of a negative value rise as it falls: all but that of its sign are
/// turned over. Done again it is undone.
fn flipped(bits: i64) -> i64 {
    match bits < 0 {
        true => bits ^ i64::MAX,
        false => bits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_order_of_their_values() {
        let ascending = [
            f64::NEG_INFINITY,
            f64::MIN,
            -1.0,
            -f64::MIN_POSITIVE,
            -0.0,
            0.0,
            5e-324,
            1.0,
            f64::MAX,
            f64::INFINITY,
            f64::NAN,
        ];
        assert!(ascending.map(key).is_sorted_by(|a, b| a < b));
        for given in ascending {
            assert_eq!(
                value(key(given)).total_cmp(&given),
                std::cmp::Ordering::Equal
            );
        }
        assert_eq!(key(-f64::NAN), key(f64::NAN));
    }
}
