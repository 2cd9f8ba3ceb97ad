//! What scans give.

use datafusion::physical_plan::SendableRecordBatchStream;
use lance::dataset::scanner::Scanner;
use lance_core::datatypes::{BlobHandling, Field};
use lance_datafusion::exec::{LanceExecutionOptions, execute_plan};

use super::memory::{BLOBS, Memory};

/// The rows of `scanner` as tables hold them. A stream of lance's own turns JSON
/// into text, and gives where blobs are instead of what they are. Where it reads
/// `blobs`, it keeps to the bounds that hold for them.
pub async fn stored(
    scanner: &mut Scanner,
    blobs: Option<&Memory>,
) -> lance::Result<SendableRecordBatchStream> {
    let mut options = LanceExecutionOptions::default();
    if let Some(memory) = blobs {
        memory.bound_blobs(scanner);
        // What stands above the scan puts no more of them together.
        options.batch_size = Some(BLOBS);
    }
    scanner.blob_handling(BlobHandling::AllBinary);
    let plan = scanner.create_plan().await?;
    execute_plan(plan, options)
}

/// Whether there are blobs in `field`, or are it.
pub fn holds_blobs(field: &Field) -> bool {
    field.is_blob() || field.children.iter().any(holds_blobs)
}
