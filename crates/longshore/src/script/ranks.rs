//! Launchers start a script in every rank; one process does the work. Rank 0 leads, the others wait for it and end with its
//! status. Processes without a rank queue for the destination, and all but the first find it finished.
//!
//! Rank 0 keeps a small file, the board, which the others watch: a number that grows while it works, at last its status. The
//! board's name comes from the job's identity and what is run, so that ranks find it without talking. It lies beside the
//! destination, which all nodes see, else in the scripts' workspace.

use crate::error::UsageError;
use crate::options::Env;
use crate::report::Report;
use anyhow::Result;
use longshore_ckpt::fs::{self, LockedFolder};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// Variables that hold a process's rank, as `PMIx`, Open MPI, Slurm and torchrun set them, with those of the number of ranks.
const RANKS: [(&str, &str); 4] = [
    ("PMIX_RANK", "PMIX_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("RANK", "WORLD_SIZE"),
];
/// Variables that tell jobs apart.
const JOBS: [&str; 7] = [
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "PMIX_NAMESPACE",
    "OMPI_MCA_ess_base_jobid",
    "TORCHELASTIC_RUN_ID",
    "MASTER_ADDR",
    "MASTER_PORT",
];
/// Between two numbers on the board.
const BEAT: Duration = Duration::from_secs(5);
/// How long the number may stay: rank 0 is gone then.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long ranks wait for the board to appear: launchers start ranks minutes apart.
const LATEST: Duration = Duration::from_mins(15);
/// A status that was there before this rank began may be of an earlier run in the same job: how long to look for a new one.
const GRACE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(100);
/// Boards older than this are removed.
const OLD: Duration = Duration::from_hours(7 * 24);
/// Largest board that is read.
const BOARD_LIMIT: u64 = 4096;

/// What ranks agree on without talking.
pub(super) struct Subject {
    /// What is run.
    pub(super) name: String,
    /// Where all of them see files.
    pub(super) beside: Option<PathBuf>,
}

/// A process's number in its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rank {
    index: u64,
    variable: &'static str,
    /// Whether there is no other.
    alone: bool,
}

impl Rank {
    /// The rank that the launcher has set, if any.
    fn of(env: &Env) -> Result<Option<Self>, UsageError> {
        for (variable, size) in RANKS {
            let Some(text) = env.text(variable)? else { continue };
            let index = text.trim().parse().map_err(|_| UsageError::Value {
                name: format!("${variable}"),
                value: text.to_owned(),
                expected: "a rank, which is a whole number",
            })?;
            let alone = index == 0 && env.text(size)?.is_some_and(|size| size.trim() == "1");
            return Ok(Some(Self { index, variable, alone }));
        }
        Ok(None)
    }
}

/// What a process is there for.
pub(super) enum Duty {
    Lead(Option<Leader>),
    Follow(Follower),
}

/// What this process does.
pub(super) fn duty(env: &Env, subject: &Subject) -> Result<Duty> {
    let Some(rank) = Rank::of(env)?.filter(|rank| !rank.alone) else { return Ok(Duty::Lead(None)) };
    let board = board(env, subject)?;
    Ok(if rank.index == 0 {
        Duty::Lead(Some(Leader::begin(board)?))
    } else {
        Duty::Follow(Follower { board, rank, began: SystemTime::now(), grace: GRACE })
    })
}

/// The board of this job and run.
fn board(env: &Env, subject: &Subject) -> Result<PathBuf, UsageError> {
    let mut identity = subject.name.clone();
    let mut known = false;
    for name in JOBS {
        if let Some(value) = env.text(name)? {
            known = true;
            identity.extend([" ", name, "=", value]);
        }
    }
    if !known {
        identity += &parent_process();
    }
    let folder = match &subject.beside {
        Some(destination) => match destination.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        },
        None => env.path("MLM_WORK_DIR").unwrap_or_else(std::env::temp_dir),
    };
    let hash = crc32fast::hash(identity.as_bytes());
    Ok(folder.join(".longshore-ranks").join(format!("{hash:08x}-{}.json", identity.len())))
}

/// What a launcher on one machine has in common for all ranks: the process that started them, and when that began.
fn parent_process() -> String {
    let parent = std::os::unix::process::parent_id();
    let stat = std::fs::read_to_string(format!("/proc/{parent}/stat")).unwrap_or_default();
    // The fields after the name, which is in brackets; the 22nd of all is the start time (proc_pid_stat(5)).
    let began = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19).map(str::to_owned));
    format!(" parent {parent} {}", began.unwrap_or_default())
}

/// What is on the board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Board {
    /// Tells runs apart.
    run: String,
    beat: u64,
    status: Option<u8>,
}

/// Rank 0 at work.
pub(super) struct Leader {
    board: PathBuf,
    run: String,
    beats: std::sync::Arc<AtomicU64>,
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Leader {
    fn begin(board: PathBuf) -> Result<Self> {
        if let Some(folder) = board.parent() {
            std::fs::create_dir_all(folder).map_err(|source| fs_error("creating", folder, source))?;
            remove_old(folder);
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let run = format!("{}-{}", std::process::id(), now.as_nanos());
        write(&board, &Board { run: run.clone(), beat: 0, status: None })?;
        let (stop, stopped) = channel();
        let beats = std::sync::Arc::new(AtomicU64::new(0));
        let thread = std::thread::spawn({
            let (board, run, beats) = (board.clone(), run.clone(), beats.clone());
            move || {
                while stopped.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                    let beat = beats.fetch_add(1, Ordering::Relaxed) + 1;
                    // A beat that is lost is no more than a late one.
                    let _ = write(&board, &Board { run: run.clone(), beat, status: None });
                }
            }
        });
        Ok(Self { board, run, beats, stop, thread })
    }

    /// Tells the other ranks how it ended.
    pub(super) fn tell(self, status: u8) -> Result<()> {
        let _ = self.stop.send(());
        let _ = self.thread.join();
        let beat = self.beats.load(Ordering::Relaxed) + 1;
        write(&self.board, &Board { run: self.run, beat, status: Some(status) })
    }
}

/// Another rank.
pub(super) struct Follower {
    board: PathBuf,
    rank: Rank,
    began: SystemTime,
    grace: Duration,
}

impl Follower {
    /// Rank 0's status.
    pub(super) fn wait(&self, report: &Report) -> Result<u8> {
        report.detail("Waiting", &format!("rank {} ({}) for rank 0", self.rank.index, self.rank.variable));
        let mut seen: Option<Board> = None;
        let mut changed = Instant::now();
        loop {
            let board = read(&self.board);
            if board.is_some() && board != seen {
                seen.clone_from(&board);
                changed = Instant::now();
            }
            match &board {
                Some(Board { status: Some(status), .. }) if !self.may_be_old() || changed.elapsed() >= self.grace => {
                    return Ok(*status);
                }
                Some(Board { status: None, .. }) if changed.elapsed() > PATIENCE => {
                    return Err(self.lost("rank 0 has stopped without a word").into());
                }
                None if changed.elapsed() > LATEST => {
                    return Err(self.lost("rank 0 has not begun, or works where this rank sees no files").into());
                }
                _ => std::thread::sleep(POLL),
            }
        }
    }

    /// Whether what is on the board was written before this rank began.
    fn may_be_old(&self) -> bool {
        std::fs::metadata(&self.board).and_then(|meta| meta.modified()).map_or(true, |written| written < self.began)
    }

    fn lost(&self, what: &'static str) -> UsageError {
        UsageError::Ranks { rank: self.rank.index, board: self.board.clone(), what }
    }
}

fn read(board: &Path) -> Option<Board> {
    serde_json::from_slice(&fs::read_small(board, BOARD_LIMIT).ok()?).ok()
}

/// Replaces the board whole.
fn write(board: &Path, content: &Board) -> Result<()> {
    let mut bytes = serde_json::to_vec(content)?;
    bytes.push(b'\n');
    Ok(fs::write_output(board, &bytes)?)
}

/// Removes boards that nobody waits for any more. What cannot be removed stays.
fn remove_old(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let modified = entry.metadata().and_then(|meta| meta.modified());
        if modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > OLD)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn fs_error(op: &str, path: &Path, source: std::io::Error) -> anyhow::Error {
    anyhow::Error::new(source).context(format!("{op} `{}`", path.display()))
}

/// Waits until no other script writes `destination`, and keeps others waiting.
pub(super) fn lock(destination: &Path, report: &Report) -> Result<LockedFolder> {
    let mut said = false;
    loop {
        match LockedFolder::open(destination, ".longshore-", "script") {
            Ok(lock) => return Ok(lock),
            Err(error) if fs::is_held(&error) => {
                if !said {
                    report.status("Waiting", &format!("another script writes `{}`", destination.display()));
                    said = true;
                }
                std::thread::sleep(POLL);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(folder: &Path) -> Subject {
        Subject { name: "convert a".to_owned(), beside: Some(folder.join("dst")) }
    }

    fn follower(env: &Env, subject: &Subject) -> Follower {
        match duty(env, subject).expect("a rank") {
            Duty::Follow(follower) => follower,
            Duty::Lead(_) => panic!("rank above 0"),
        }
    }

    fn leader(env: &Env, subject: &Subject) -> Leader {
        match duty(env, subject).expect("a rank") {
            Duty::Lead(Some(leader)) => leader,
            _ => panic!("rank 0 of several"),
        }
    }

    fn quiet() -> Report {
        Report::new(&crate::cli::Global::default(), &Env::default()).quietly()
    }

    #[test]
    fn the_rank_is_the_first_launchers_that_says_one() {
        let rank = |pairs: &[(&str, &str)]| Rank::of(&Env::of(pairs));
        assert_eq!(rank(&[]), Ok(None));
        let first = rank(&[("RANK", "1"), ("OMPI_COMM_WORLD_RANK", "3")]).expect("a number").expect("a rank");
        assert_eq!((first.index, first.variable), (3, "OMPI_COMM_WORLD_RANK"));
        assert!(rank(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1")]).expect("a number").expect("a rank").alone);
        assert!(!rank(&[("RANK", "0"), ("WORLD_SIZE", "2")]).expect("a number").expect("a rank").alone);
        assert!(rank(&[("RANK", "x")]).is_err());
    }

    #[test]
    fn ranks_of_a_job_end_with_the_status_of_rank_0_whoever_comes_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let subject = subject(folder.path());
        let env = |rank: &str| Env::of(&[("RANK", rank), ("WORLD_SIZE", "3"), ("MASTER_PORT", "29500")]);
        let early = follower(&env("1"), &subject);
        std::thread::scope(|scope| {
            let early = scope.spawn(move || early.wait(&quiet()));
            std::thread::sleep(POLL * 3);
            let leader = leader(&env("0"), &subject);
            std::thread::sleep(POLL * 3);
            assert!(!early.is_finished());
            leader.tell(1).expect("a board");
            assert_eq!(early.join().expect("no panic").expect("a status"), 1);
        });
        assert_eq!(follower(&env("2"), &subject).wait(&quiet()).expect("a status"), 1);
    }

    #[test]
    fn a_new_run_of_the_same_job_is_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let subject = subject(folder.path());
        let env = |rank: &str| Env::of(&[("RANK", rank), ("MASTER_PORT", "29500")]);
        leader(&env("0"), &subject).tell(1).expect("a board");
        std::thread::sleep(POLL);
        // However long a busy disk takes to write the new board.
        let late = Follower { grace: PATIENCE, ..follower(&env("1"), &subject) };
        std::thread::scope(|scope| {
            let late = scope.spawn(move || late.wait(&quiet()));
            std::thread::sleep(POLL * 5);
            leader(&env("0"), &subject).tell(0).expect("a board");
            assert_eq!(late.join().expect("no panic").expect("a status"), 0);
        });
    }

    #[test]
    fn jobs_and_runs_have_boards_of_their_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let (one, mut other) = (subject(folder.path()), subject(folder.path()));
        other.name = "quantize a".to_owned();
        let path = |port: &str, subject: &Subject| board(&Env::of(&[("MASTER_PORT", port)]), subject).expect("a path");
        assert_ne!(path("1", &one), path("2", &one));
        assert_ne!(path("1", &one), path("1", &other));
        assert_eq!(path("1", &one), path("1", &one));
    }
}
