//! What scans give.

use datafusion::physical_plan::SendableRecordBatchStream;
use lance::dataset::scanner::Scanner;
use lance_core::datatypes::BlobHandling;
use lance_datafusion::exec::{LanceExecutionOptions, execute_plan};

/// The rows of `scanner` as tables hold them. A stream of lance's own turns JSON
/// into text, and gives where blobs are instead of what they are.
pub async fn stored(scanner: &mut Scanner) -> lance::Result<SendableRecordBatchStream> {
    scanner.blob_handling(BlobHandling::AllBinary);
    let plan = scanner.create_plan().await?;
    execute_plan(plan, LanceExecutionOptions::default())
}
