//! What scans give.

use datafusion::physical_plan::SendableRecordBatchStream;
use lance::dataset::scanner::Scanner;
use lance_core::datatypes::BlobHandling;
use lance_datafusion::exec::{LanceExecutionOptions, execute_plan};

use super::memory::{BLOBS, Memory};

/// The rows of `scanner` as tables hold them. A stream of lance's own turns JSON
/// into text.
pub async fn stored(scanner: &mut Scanner) -> lance::Result<SendableRecordBatchStream> {
    let plan = scanner.create_plan().await?;
    execute_plan(plan, LanceExecutionOptions::default())
}

/// The same where it reads blobs: what they are, and not where.
pub async fn stored_with_blobs(
    scanner: &mut Scanner,
    memory: &Memory,
) -> lance::Result<SendableRecordBatchStream> {
    memory.bound_blobs(scanner);
    scanner.blob_handling(BlobHandling::AllBinary);
    let plan = scanner.create_plan().await?;
    let options = LanceExecutionOptions {
        // What stands above the scan puts no more of them together.
        batch_size: Some(BLOBS),
        ..Default::default()
    };
    execute_plan(plan, options)
}
