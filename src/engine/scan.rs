//! What scans give.

use datafusion::physical_plan::SendableRecordBatchStream;
use lance::dataset::scanner::Scanner;
use lance_core::datatypes::{BlobHandling, Field};
use lance_datafusion::exec::{LanceExecutionOptions, execute_plan};

use super::memory::{BLOBS, Memory};

/// The rows of `scanner` as tables hold them. A stream of lance's own turns JSON
/// into text, and gives where blobs are instead of what they are.
pub async fn stored(scanner: &mut Scanner) -> lance::Result<SendableRecordBatchStream> {
    scanner.blob_handling(BlobHandling::AllBinary);
    let plan = scanner.create_plan().await?;
    execute_plan(plan, LanceExecutionOptions::default())
}

/// The same where it reads blobs, in bounds that hold for them.
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

/// Whether there are blobs in `field`, or are it.
pub fn holds_blobs(field: &Field) -> bool {
    field.is_blob() || field.children.iter().any(holds_blobs)
}
