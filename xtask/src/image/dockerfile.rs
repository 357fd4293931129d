//! What of a Dockerfile decides what is in the image: so much of it is understood, and the rest refused.

use anyhow::{Context, Result, bail, ensure};

/// What our Dockerfile says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Dockerfile {
    /// The version of Rust that the stage which builds has.
    pub(crate) toolchain: String,
    /// The target of the build.
    pub(crate) target: String,
    /// cargo's words.
    pub(crate) cargo: Vec<String>,
    /// The program that is built, below cargo's target folder.
    pub(crate) program: String,
    /// Where the program is in the image.
    pub(crate) place: String,
    /// What is started.
    pub(crate) entrypoint: Vec<String>,
}

impl Dockerfile {
    /// Reads the two stages: one that builds, and one from scratch that takes a single program.
    pub(crate) fn read(text: &str) -> Result<Dockerfile> {
        let lines: Vec<&str> =
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        let one = |before: &str| -> Result<&str> {
            let mut found = lines.iter().filter_map(|line| line.strip_prefix(before));
            match (found.next(), found.next()) {
                (Some(rest), None) => Ok(rest),
                (None, _) => bail!("it has no line \"{before}...\""),
                _ => bail!("it has several lines \"{before}...\""),
            }
        };
        let target = one("ARG TARGET=")?.to_owned();
        let words = |text: &str| -> Vec<String> {
            text.replace("${TARGET}", &target).split_whitespace().map(str::to_owned).collect()
        };
        let base = one("FROM docker.io/library/rust:")?;
        let toolchain = base.split(['-', ' ']).next().unwrap_or_default().to_owned();
        let cargo = [vec!["build".to_owned()], words(one("RUN cargo build ")?)].concat();
        let [program, put] = &words(one("RUN cp ")?)[..] else { bail!("RUN cp wants two words") };
        let program = program.strip_prefix("target/").context("what is copied is not below target/")?.to_owned();

        let last = lines.iter().rposition(|line| line.starts_with("FROM ")).context("it has no stage")?;
        ensure!(lines[last] == "FROM scratch", "its last stage is not FROM scratch");
        for line in &lines[last + 1..] {
            let known = ["COPY --from=build ", "ENTRYPOINT ", "CMD "].iter().any(|word| line.starts_with(word));
            ensure!(known, "its last stage has a line that nobody here understands: {line}");
        }
        let copy = one("COPY --from=build ")?;
        let [taken, place] = &words(copy)[..] else { bail!("COPY wants two words") };
        ensure!(taken == put, "it copies {taken}, and what it builds is {put}");
        let entrypoint = serde_json::from_str(one("ENTRYPOINT ")?).context("ENTRYPOINT wants a list")?;
        Ok(Dockerfile { toolchain, target, cargo, program, place: place.clone(), entrypoint })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = include_str!("../../../deploy/Dockerfile");

    #[test]
    fn ours_is_understood() {
        let dockerfile = Dockerfile::read(OURS).unwrap();
        assert_eq!(dockerfile.target, "x86_64-unknown-linux-musl");
        assert_eq!(dockerfile.cargo.last(), Some(&dockerfile.target));
        assert_eq!(dockerfile.program, "x86_64-unknown-linux-musl/release/pipewarden");
        assert_eq!(dockerfile.entrypoint, [dockerfile.place]);
    }

    #[test]
    fn what_would_make_another_image_is_not_passed_over() {
        let more = format!("{OURS}\nCOPY deploy /etc\n");
        assert!(Dockerfile::read(&more).unwrap_err().to_string().contains("COPY deploy /etc"));
        let other = OURS.replace("FROM scratch", "FROM alpine");
        assert!(Dockerfile::read(&other).is_err());
        let other = OURS.replace("--from=build /pipewarden", "--from=build /other");
        assert!(Dockerfile::read(&other).is_err());
    }
}
