// What lies between these two is compiled for an instruction set of x86-64, by GCC and clang alike.
#pragma once

#if defined(__x86_64__)
#define UNICLIP_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define UNICLIP_BEGIN_TARGET(isa) \
  UNICLIP_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define UNICLIP_END_TARGET UNICLIP_PRAGMA(clang attribute pop)
#else
#define UNICLIP_BEGIN_TARGET(isa) UNICLIP_PRAGMA(GCC push_options) UNICLIP_PRAGMA(GCC target(isa))
#define UNICLIP_END_TARGET UNICLIP_PRAGMA(GCC pop_options)
#endif
#endif
