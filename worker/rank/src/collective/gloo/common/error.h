// Declares what c10d's ProcessGroupGloo.hpp names and the library does not ship. See
// rendezvous/store.h.
#pragma once
