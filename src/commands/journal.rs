//! `mirrorfs journal ls|show|verify`.

use crate::cli::JournalCommand;
use crate::control::{self, JournalRow, Reply, Request};
use crate::exit_code::{CliError, Context, ExitCode};
use crate::names::Namer;
use crate::registry;
use crate::units::{show_ms, show_size};
use mirrorfs_journal::log::QueueView;
use mirrorfs_journal::{Body, MirrorRequest, Sequence};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Carries out one of them.
pub(super) fn journal(command: JournalCommand) -> Result<ExitCode, CliError> {
    match command {
        JournalCommand::Ls { target, json, limit } => list(target.as_deref(), json, limit),
        JournalCommand::Show { sequence, target, json, payload } => {
            show(sequence, target.as_deref(), json, payload)
        }
        JournalCommand::Verify { target } => verify(target.as_deref()),
    }
}

/// The state directories meant: one, or all known.
fn targets(target: Option<&Path>) -> Result<Vec<PathBuf>, CliError> {
    match target {
        Some(target) => Ok(vec![registry::resolve(target)?]),
        None => Ok(registry::all()?.into_iter().map(|known| known.state_dir).collect()),
    }
}

fn list(target: Option<&Path>, json: bool, limit: usize) -> Result<ExitCode, CliError> {
    let dirs = targets(target)?;
    let mut out = std::io::stdout().lock();
    let mut all = Vec::new();
    for dir in &dirs {
        let rows = match control::ask(dir, &Request::Journal { limit }, None)? {
            Some(Reply::Journal { rows }) => rows,
            _ => rows_of_files(dir, limit)?,
        };
        if json {
            all.extend(rows);
            continue;
        }
        let written = write_rows(&mut out, dir, &rows);
        if written.is_err() {
            return Ok(ExitCode::Success); // the reader has closed the pipe
        }
    }
    if json {
        let text = serde_json::to_string_pretty(&all).context(|| "cannot describe the queue".into())?;
        let _ = writeln!(out, "{text}");
    } else if dirs.is_empty() {
        let _ = writeln!(out, "No mounts are known.");
    }
    Ok(ExitCode::Success)
}

fn write_rows(out: &mut impl std::io::Write, dir: &Path, rows: &[JournalRow]) -> std::io::Result<()> {
    let mount = crate::commands::status::mountpoint_of(dir);
    let requests = rows.iter().filter(|row| row.length.is_some()).count();
    let bytes: u64 = rows.iter().filter(|row| row.op == "write").filter_map(|row| row.length).sum();
    writeln!(out, "{}: {requests} requests wait, {}", mount.display(), show_size(bytes))?;
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "{:>12} {:>10} {:<8} {:<9} {:>14} {:>9} {:>9}  NAME",
        "SEQUENCE", "EPOCH", "LUN", "OP", "OFFSET", "LENGTH", "AGE"
    )?;
    for row in rows {
        let number = |value: Option<u64>| value.map_or_else(|| "-".into(), |value| value.to_string());
        writeln!(
            out,
            "{:>12} {:>10} {:<8} {:<9} {:>14} {:>9} {:>9}  {}",
            row.sequence,
            row.epoch,
            row.lun,
            row.op,
            number(row.offset),
            row.length.map_or_else(|| "-".into(), show_size),
            show_ms(row.age_ms),
            row.name
        )?;
    }
    Ok(())
}

/// What waits, read from the queue's files; no process runs.
fn rows_of_files(dir: &Path, limit: usize) -> Result<Vec<JournalRow>, CliError> {
    let queue = dir.join("queue");
    if !queue.exists() {
        return Ok(Vec::new());
    }
    let view = QueueView::open(&queue).context(|| format!("cannot read the queue {}", queue.display()))?;
    let mut records = view.records(false).context(|| format!("cannot read the queue {}", queue.display()))?;
    if limit > 0 {
        records.truncate(limit);
    }
    let luns = crate::mount_process::lun_names(dir);
    let mut namer = Namer::of_images(dir, &luns);
    Ok(rows(records.iter(), &luns, &mut namer))
}

/// Rows for people and programs; names are looked up in one walk.
pub(crate) fn rows<'a>(
    records: impl Iterator<Item = &'a MirrorRequest> + Clone,
    luns: &[String],
    namer: &mut Namer,
) -> Vec<JournalRow> {
    namer.look_up(records.clone());
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis()
            as u64;
    records
        .map(|record| {
            let range = record.range();
            JournalRow {
                sequence: record.sequence.to_string(),
                epoch: record.epoch.to_string(),
                lun: lun_name(record, luns),
                op: op(&record.body).into(),
                offset: range.map(|range| range.0),
                length: range.map(|range| range.1),
                age_ms: now.saturating_sub(record.accepted_ms),
                name: namer.name(record),
            }
        })
        .collect()
}

fn lun_name(record: &MirrorRequest, luns: &[String]) -> String {
    match record.body {
        Body::Barrier { .. } => "-".into(),
        _ => luns.get(usize::from(record.lun.0)).cloned().unwrap_or_else(|| format!("#{}", record.lun.0)),
    }
}

fn op(body: &Body) -> &'static str {
    match body {
        Body::Write { .. } => "write",
        Body::Discard { .. } => "discard",
        Body::Check { .. } => "check",
        Body::Barrier { .. } => "barrier",
        Body::ResyncBegin { .. } => "resync-begin",
        Body::ResyncEnd => "resync-end",
    }
}

fn show(sequence: Sequence, target: Option<&Path>, json: bool, payload: bool) -> Result<ExitCode, CliError> {
    for dir in targets(target)? {
        let queue = dir.join("queue");
        if !queue.exists() {
            continue;
        }
        let context = || format!("cannot read the queue {}", queue.display());
        let view = QueueView::open(&queue).context(context)?;
        let Some(record) = view.show(sequence).context(context)? else { continue };
        let luns = crate::mount_process::lun_names(&dir);
        let mut namer = Namer::of_images(&dir, &luns);
        let row = rows(std::iter::once(&record), &luns, &mut namer).remove(0);
        print_record(&record, &row, json, payload)?;
        return Ok(ExitCode::Success);
    }
    Err(CliError::new(
        ExitCode::NotFound,
        format!(
            "no record {sequence} in the on-disk queue (what waits in a running mount's memory is shown by journal ls only)"
        ),
    ))
}

fn print_record(record: &MirrorRequest, row: &JournalRow, json: bool, payload: bool) -> Result<(), CliError> {
    let mut fields = serde_json::to_value(row).context(|| "cannot describe the record".into())?;
    fields["origin"] = serde_json::to_value(record.origin).context(|| "cannot describe the record".into())?;
    fields["accepted_ms"] = record.accepted_ms.into();
    match &record.body {
        Body::Write { payload: bytes, crc, .. } => {
            fields["crc32c"] = format!("{crc:08x}").into();
            fields["payload_bytes"] = bytes.len().into();
            if payload && json {
                fields["payload"] = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
            }
        }
        Body::Check { hash, .. } => {
            fields["hash"] = hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
        }
        Body::Barrier { previous } => {
            let previous: Vec<_> =
                previous.iter().map(|(lun, epoch)| format!("LUN {} after {epoch}", lun.0)).collect();
            fields["previous"] = previous.into();
        }
        Body::ResyncBegin { whole } => fields["whole"] = (*whole).into(),
        Body::Discard { .. } | Body::ResyncEnd => {}
    }
    if json {
        println!("{fields:#}");
        return Ok(());
    }
    if let Some(fields) = fields.as_object() {
        for (name, value) in fields {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            println!("{name:<14} {value}");
        }
    }
    if let (true, Body::Write { payload: bytes, offset, .. }) = (payload, &record.body) {
        hex_dump(*offset, bytes);
    }
    Ok(())
}

fn hex_dump(start: u64, bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    for (index, row) in bytes.chunks(16).enumerate() {
        let hex: String = row.iter().map(|byte| format!(" {byte:02x}")).collect();
        let text: String =
            row.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '.' }).collect();
        if writeln!(out, "{:012x} {hex:<48}  {text}", start + index as u64 * 16).is_err() {
            return;
        }
    }
}

fn verify(target: Option<&Path>) -> Result<ExitCode, CliError> {
    let mut code = ExitCode::Success;
    for dir in targets(target)? {
        let queue = dir.join("queue");
        if !queue.exists() {
            println!("{}: no queue", dir.display());
            continue;
        }
        let context = || format!("cannot read the queue {}", queue.display());
        let damage = QueueView::open(&queue).context(context)?.verify().context(context)?;
        if damage.is_empty() {
            println!("{}: every record is sound", queue.display());
        } else {
            code = ExitCode::Failure;
            for line in damage {
                println!("{}: {line}", queue.display());
            }
            println!("The mount survives this: regions of damaged records are sent anew from the image.");
        }
    }
    Ok(code)
}
