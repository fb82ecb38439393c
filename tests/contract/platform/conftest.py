from tests.platform_harness import platform as platform
