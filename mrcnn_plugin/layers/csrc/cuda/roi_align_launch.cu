// The only file that nvcc compiles.
#include "roi_align_launch.cuh"
