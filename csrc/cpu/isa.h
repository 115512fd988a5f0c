// What every translation unit of kernels begins with: it is compiled for one instruction set, SFRS_ISA, with
// vectors of SFRS_VECTOR_BYTES.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels.h"
#include "scratch.h"
#include "shufflevector.h"

#ifndef SFRS_ISA  // an editor that parses a file by itself
#define SFRS_ISA portable
#define SFRS_VECTOR_BYTES 64
#endif

#if defined(__AVX512F__) && SFRS_VECTOR_BYTES == 64
#define SFRS_AVX512
#include <immintrin.h>
#endif

#define SFRS_INLINE inline __attribute__((always_inline))
#define SFRS_NOINLINE __attribute__((noinline))
#define SFRS_TEXT(x) #x
#define SFRS_NAME(x) SFRS_TEXT(x)
