import atexit
import os
import shutil
import tempfile

# The generated data sets are in a folder that is deleted after the tests. The import of the package
# registers them there, so the variable has to be set first. Processes that tests start inherit it.
os.environ["DETECTRON2_DATASETS"] = tempfile.mkdtemp(prefix="mrcnn_plugin_tests_")
atexit.register(shutil.rmtree, os.environ["DETECTRON2_DATASETS"], ignore_errors=True)
