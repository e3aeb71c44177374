// The peer of the DRAM replay: DRAMSim3 fed in a closed loop, one request as soon as it takes the last.
//
// dramsim3 CONFIG TRACE: TRACE is (uint64 address, uint64 write) pairs. Prints requests, the cycle after the last data,
// and seconds; its own statistics go to dramsim3.json in the current folder.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <vector>

#include "dramsim3.h"

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    std::vector<uint64_t> trace;
    FILE *file = std::fopen(argv[2], "rb");
    if (!file) return 2;
    uint64_t pair[2];
    while (std::fread(pair, sizeof pair, 1, file) == 1) trace.insert(trace.end(), pair, pair + 2);
    std::fclose(file);
    const uint64_t n = trace.size() / 2;
    uint64_t done = 0, cycle = 0, next = 0;
    const auto count = [&done](uint64_t) { done++; };
    dramsim3::MemorySystem *memory = dramsim3::GetMemorySystem(argv[1], ".", count, count);
    const auto begin = std::chrono::steady_clock::now();
    if (n) memory->AddTransaction(trace[0], trace[1]), next = 1;
    while (done < n) {
        memory->ClockTick();
        cycle++;
        if (next < n && memory->WillAcceptTransaction(trace[2 * next], trace[2 * next + 1])) {
            memory->AddTransaction(trace[2 * next], trace[2 * next + 1]);
            next++;
        }
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    memory->PrintStats();
    std::printf("%llu %llu %.6f\n", (unsigned long long)n, (unsigned long long)cycle, took.count());
    delete memory;
    return 0;
}
