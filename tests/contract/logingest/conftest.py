from tests.logingest_harness import logs as logs
