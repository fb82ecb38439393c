from tests.backups_harness import backups as backups
