// Steps of OpenVINO GenAI's scheduler over its block manager, with its sequences; see record_openvino.py, which builds this.
//
// The cache has no tensors and there is no model: a row that has computed all its tokens gets its scripted next one, and an
// answer ends at its length, as the pipeline's step and the sampler do it (pipeline_impl.cpp, sampler.cpp). Read from standard
// input: the number of requests, the settings, the clock, then each request with its tokens; written: a line a step.

#include <cstdio>
#include <iostream>
#include <queue>
#include <sstream>

#include "continuous_batching/cache/cache_eviction.hpp"
#include "continuous_batching/scheduler.hpp"
#include "continuous_batching/sparse_attention.hpp"
#include "openvino/genai/generation_config.hpp"
#include "openvino/genai/visual_language/perf_metrics.hpp"
#include "sequence_group.hpp"

namespace ov::genai {  // what is off, or of no concern here
size_t GenerationConfig::get_max_new_tokens(size_t) const { return max_new_tokens; }
bool GenerationConfig::is_beam_search() const { return false; }
bool GenerationConfig::is_multinomial() const { return false; }
void GenerationConfig::update_generation_config(const ov::AnyMap&) {}
void GenerationConfig::validate() const {}
void PerfMetrics::evaluate_statistics(std::optional<TimePoint>) {}
void VLMPerfMetrics::evaluate_statistics(std::optional<TimePoint>) {}
size_t SnapKVScoreAggregationCalculator::get_num_token_scores_to_aggregate(size_t, size_t tokens, size_t) { return tokens; }
std::set<size_t> TriShapeSparseAttentionTokenSkipper::get_skipped_blocks(const SequenceGroup::CPtr&) const { return {}; }
namespace utils { size_t get_available_gpu_memory(const std::string&, size_t) { return 0; } }
}  // namespace ov::genai

using namespace ov::genai;

struct NoTensors : ICacheManager {
    size_t block, have = 0;
    explicit NoTensors(size_t tokens) : block(tokens) {}
    void allocate_cache_if_needed(size_t blocks) override { have = std::max(have, blocks); }
    void copy_blocks(const std::map<size_t, std::list<size_t>>&) override {}
    void clear() override { have = 0; }
    size_t get_num_layers() const override { return 1; }
    size_t get_num_cache_tensors() const override { return 2; }
    size_t get_block_size() const override { return block; }
    std::string get_device() const override { return "CPU"; }
    size_t get_block_size_in_bytes() const override { return block * 4; }
    size_t get_num_allocated_blocks() const override { return have; }
};

struct Request {
    bool follows = false, fresh = true;
    double at_s = 0, delay_s = 0;
    size_t before = 0, answer = 0, found = 0;
    TokenIds prompt, tokens;
    SequenceGroup::Ptr group;
};

struct Run {
    std::vector<Request> requests;
    std::priority_queue<std::pair<double, size_t>, std::vector<std::pair<double, size_t>>, std::greater<>> due;
    std::vector<size_t> awaiting, ids;
    std::vector<SequenceGroup::Ptr> list;
    std::unique_ptr<Scheduler> scheduler;
    bool prefix = false;

    void arrive(double now_s) {
        for (; !due.empty() && due.top().first <= now_s + 1e-12; due.pop()) {
            const size_t id = due.top().second;
            Request& request = requests[id];
            GenerationConfig config;
            config.max_new_tokens = request.answer;
            config.ignore_eos = true;
            request.group = std::make_shared<SequenceGroup>(id, request.prompt, config);
            if (prefix) scheduler->restore_cached_blocks(request.group);
            request.found = request.group->get_num_processed_tokens();
            awaiting.push_back(id);
        }
    }

    std::vector<size_t> leave(double now_s) {
        std::vector<size_t> gone;
        for (size_t at = 0; at < list.size();) {
            if (!list[at]->has_finished()) { at++; continue; }
            const auto id = (*list[at])[0]->get_id();
            if (scheduler->has_block_table(id)) scheduler->free_sequence(id);
            gone.push_back(ids[at]);
            list.erase(list.begin() + at);
            ids.erase(ids.begin() + at);
        }
        for (size_t id = 0; id < requests.size(); id++)
            for (const size_t before : gone)
                if (requests[id].follows && requests[id].before == before) due.push({now_s + requests[id].delay_s, id});
        return gone;
    }
};

int main() {
    size_t many, most_tokens, blocks, most_rows, block;
    bool split, partial;
    double a, b, c, d;
    Run run;
    std::cin >> many >> most_tokens >> blocks >> split >> most_rows >> run.prefix >> block >> partial >> a >> b >> c >> d;
    run.requests.resize(many);
    for (size_t id = 0; id < many; id++) {
        Request& request = run.requests[id];
        size_t prompt;
        std::cin >> request.follows;
        if (request.follows) std::cin >> request.before >> request.delay_s;
        else { std::cin >> request.at_s; run.due.push({request.at_s, id}); }
        std::cin >> prompt >> request.answer;
        request.prompt.resize(prompt);
        request.tokens.resize(request.answer);
        for (auto& token : request.prompt) std::cin >> token;
        for (auto& token : request.tokens) std::cin >> token;
    }
    SchedulerConfig config;
    config.max_num_batched_tokens = most_tokens;
    config.num_kv_blocks = blocks;
    config.dynamic_split_fuse = split;
    config.max_num_seqs = most_rows;
    config.enable_prefix_caching = run.prefix;
    auto manager = std::make_unique<BlockManager>(int(blocks), run.prefix, block, 1);
    BlockManager& pool = *manager;
    auto caches = std::make_shared<CacheOrchestrator>();
    caches->register_cache_type(CacheType::KV_CACHE, std::make_unique<NoTensors>(block), std::move(manager));
    run.scheduler = std::make_unique<Scheduler>(caches, config, partial);
    auto& list = run.list;
    auto& ids = run.ids;
    for (double now_s = 0;;) {
        run.arrive(now_s);
        for (const size_t id : run.awaiting) { list.push_back(run.requests[id].group); ids.push_back(id); }
        run.awaiting.clear();
        if (list.empty()) {
            if (run.due.empty()) break;
            now_s = run.due.top().first;
            continue;
        }
        std::vector<size_t> before;
        for (const auto& group : list) before.push_back(group->get_num_processed_tokens());
        const auto out = run.scheduler->schedule(list);
        if (!out.m_total_num_scheduled_tokens) {
            for (auto& group : list) if (!group->is_waiting()) group->set_out_of_memory();
            if (run.leave(now_s).empty()) break;
            continue;
        }
        size_t prompts = 0, decodes = 0, kv = 0;
        std::ostringstream rows, found, lost, holding, bare, finished;
        for (const auto at : out.m_scheduled_sequence_groups_ids) {
            const size_t tokens = list[at]->get_num_scheduled_tokens(), have = list[at]->get_num_processed_tokens();
            rows << ids[at] << ":" << tokens << ":" << have << ",";
            if (tokens == 1 && have >= run.requests[ids[at]].prompt.size()) decodes++;
            else prompts += tokens;
            kv += tokens + have;
        }
        for (size_t at = 0; at < list.size(); at++) {
            Request& request = run.requests[ids[at]];
            if (request.fresh && request.found) found << ids[at] << ":" << request.found << ",";
            request.fresh = false;
            const size_t have = list[at]->get_num_processed_tokens();
            if (have < before[at]) lost << ids[at] << ":" << before[at] - have << ",";
            (run.scheduler->has_block_table((*list[at])[0]->get_id()) ? holding : bare) << ids[at] << ",";
        }
        const size_t free = pool.num_free_blocks(), total = pool.get_total_block_count();
        const double end_s = now_s + (a + b * prompts + c * decodes + d * kv);
        while (!run.due.empty() && run.due.top().first < end_s - 1e-12) run.arrive(run.due.top().first);
        for (const auto at : out.m_scheduled_sequence_groups_ids) {
            const auto sequence = (*list[at])[0];
            const Request& request = run.requests[ids[at]];
            const bool yields = list[at]->requires_sampling();
            if (yields) sequence->append_token(request.tokens[sequence->get_generated_len()], 0.f);
            list[at]->finish_iteration();
            if (yields && sequence->get_generated_len() >= request.answer) sequence->set_status(SequenceStatus::FINISHED);
        }
        for (const size_t id : run.leave(end_s)) finished << id << ",";
        std::printf("%.17g|%.17g|%s|%d|%s|%s|%s|%s|%zu|%.17g|%zu|%s|%zu\n", now_s, end_s, rows.str().c_str(), int(out.is_prompt),
                    found.str().c_str(), lost.str().c_str(), holding.str().c_str(), bare.str().c_str(), free, out.m_cache_usage,
                    total, finished.str().c_str(), pool.num_free_blocks());
        now_s = end_s;
    }
}
