SECRET_KEY = "types"
# The demo is there because the plugin needs the settings of all that it checks.
INSTALLED_APPS = ["greenorm", "greenorm.demo", "tests.typed_project"]
DATABASES = {"default": {"ENGINE": "greenorm.backends.postgresql", "NAME": "bank"}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "tests.typed_project.urls"
