from tests.acceptance.pets import sample_api as sample_api
