import atexit
import os
import shutil
import tempfile

# The generated data sets go into a folder that is deleted after the tests. Importing the package
# registers them there, so that this has to come first. Processes that tests start inherit it.
os.environ["DETECTRON2_DATASETS"] = tempfile.mkdtemp(prefix="mrcnn_plugin_tests_")
atexit.register(shutil.rmtree, os.environ["DETECTRON2_DATASETS"], ignore_errors=True)
