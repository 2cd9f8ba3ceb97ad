//! Tables in memory, and views in any SQL that are held against them.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchIterator};
use arrow_schema::{Field, Schema, SchemaRef};
use datafusion::datasource::MemTable;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;
use lance::Dataset;
use lance_io::stream::RecordBatchStream;
use lancedb::materialized_view::DEFINITION_META_KEY;

use super::Db;

impl Db {
    /// Those of `tables` that are there, in memory, as a query sees them.
    pub async fn in_memory(&self, tables: &[&str]) -> SessionContext {
        let mut config = SessionConfig::new();
        config.options_mut().sql_parser.enable_ident_normalization = false;
        config.options_mut().sql_parser.map_string_types_to_utf8view = false;
        let context = SessionContext::new_with_config(config);
        for name in tables {
            let Ok(table) = Dataset::open(&self.path(name)).await else {
                continue;
            };
            let stream = table.scan().try_into_stream().await.unwrap();
            let schema: SchemaRef = stream.schema();
            let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
            let rows = MemTable::try_new(schema, vec![batches]).unwrap();
            context.register_table(*name, Arc::new(rows)).unwrap();
        }
        context
    }

    /// Creates view `name` of a stored `definition`, empty. Its columns are those
    /// of `sql`, the same query as DataFusion reads it.
    pub async fn create_query_view(
        &self,
        tables: &SessionContext,
        name: &str,
        sql: &str,
        definition: String,
    ) {
        let plan = tables.sql(sql).await.unwrap();
        let plan = plan.into_optimized_plan().unwrap();
        let fields = plan.schema().fields().iter();
        let fields = fields
            .map(|f| Field::new(f.name(), f.data_type().clone(), true))
            .collect();
        self.create_stored(name, fields, definition).await;
    }

    /// Creates view `name`, empty, of a stored `definition`.
    pub async fn create_stored(&self, name: &str, fields: Vec<Field>, definition: String) {
        let metadata = HashMap::from([(DEFINITION_META_KEY.to_string(), definition)]);
        let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
        let reader = RecordBatchIterator::new(std::iter::empty(), schema);
        Dataset::write(reader, &self.path(name), None)
            .await
            .unwrap();
    }
}
