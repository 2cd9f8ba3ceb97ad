//! The life of a view: filled, and refreshed after each kind of change.

use std::collections::BTreeMap;

use crate::Args;
use crate::changes::Change;
use crate::database::Database;
use crate::peers::{Peer, Peers, Sample};
use crate::report::{Line, Report};
use crate::workload::{ROWS, Workload};

/// Every change to a source of `rows` rows with stable row ids; then deletes
/// and updates without.
pub async fn history(args: &Args, rows: u64, report: &mut Report) {
    report.heading(&format!(
        "{rows} source rows, with a filter and three expressions"
    ));
    run(args, &ROWS, rows, true, &Change::ALL, report).await;
    report.heading(&format!("{rows} source rows without stable row ids"));
    let changes = [Change::Full, Change::Delete, Change::Update];
    run(args, &ROWS, rows, false, &changes, report).await;
}

/// The changes that tell most, to a view of another shape.
pub async fn shape(args: &Args, workload: &'static Workload, report: &mut Report) {
    let rows = args.shape_rows / workload.part_of;
    report.heading(&format!("{}: {rows} source rows", workload.name));
    let changes = [
        Change::Full,
        Change::Nothing,
        Change::Percent,
        Change::Delete,
        Change::Update,
    ];
    run(args, workload, rows, true, &changes, report).await;
}

async fn run(
    args: &Args,
    workload: &'static Workload,
    rows: u64,
    stable_row_ids: bool,
    changes: &[Change],
    report: &mut Report,
) {
    let wanted = |change: &&Change| args.changes.is_empty() || args.changes.contains(change);
    let changes: Vec<&Change> = changes.iter().filter(wanted).collect();
    if changes.is_empty() {
        return;
    }
    let mut database = Database::new(&args.folder, workload, rows, stable_row_ids).await;
    let mut peers = Peers::connect(&database, args.python.as_deref(), args.alone).await;
    if !changes.contains(&&Change::Full) {
        for peer in peers.present().to_vec() {
            if let (false, Err(why)) = (
                peer == Peer::Floor,
                peers.refresh(peer, &database, true).await,
            ) {
                println!("{peer:?} is left out of '{}': {why}", workload.name);
                peers.dismiss(peer);
            }
        }
    }
    for change in changes {
        if !peers.present().contains(&Peer::Relance) {
            break;
        }
        let mut samples: BTreeMap<Peer, Vec<Sample>> = BTreeMap::new();
        for round in 0..args.rounds {
            change.make(&mut database, round).await;
            let expected = database.expected().await;
            // Each comes first and last as often as the others.
            let mut order = peers.present().to_vec();
            order.retain(|p| *p != Peer::Floor || *change == Change::Full);
            let first = round % order.len();
            order.rotate_left(first);
            for peer in &order {
                let full = *change == Change::Full;
                match peers.refresh(*peer, &database, full).await {
                    Ok(sample) => samples.entry(*peer).or_default().push(sample),
                    Err(why) => {
                        println!("{peer:?} is left out of '{}': {why}", workload.name);
                        peers.dismiss(*peer);
                        continue;
                    }
                }
                let found = database.count(peer.view()).await;
                assert_eq!(found, expected, "rows of {peer:?} after {change:?}");
            }
            let views = peers.present().iter().filter(|p| **p != Peer::Floor);
            database.tidy(views.map(|p| p.view())).await;
        }
        report.line(Line {
            workload: workload.name,
            rows,
            stable_row_ids,
            change: *change,
            samples,
        });
    }
}
