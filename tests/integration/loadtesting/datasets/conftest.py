from tests.loadtesting_harness import loadtesting as loadtesting
