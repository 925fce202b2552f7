"""Writes multihead_reference.hpp: outputs of torch.nn.MultiheadAttention for inputs and parameters that follow from a
formula, so that the test needs no PyTorch. Run: python multihead_reference.py > multihead_reference.hpp"""
import torch

FEATURES, HEADS, QUERIES, KEYS, BATCH = 12, 3, 3, 5, 2
torch.set_default_dtype(torch.float64)


def numbers(count, phase, scale=1.0):
    """scale * sin(0.7 i + phase) for i < count; the test has the same function."""
    return scale * torch.sin(0.7 * torch.arange(count, dtype=torch.float64) + phase)


def layer():
    attention = torch.nn.MultiheadAttention(FEATURES, HEADS)
    attention.load_state_dict({
        "in_proj_weight": numbers(3 * FEATURES * FEATURES, 1, 0.5).view(3 * FEATURES, FEATURES),
        "in_proj_bias": numbers(3 * FEATURES, 2, 0.3),
        "out_proj.weight": numbers(FEATURES * FEATURES, 3, 0.5).view(FEATURES, FEATURES),
        "out_proj.bias": numbers(FEATURES, 4, 0.3),
    })
    return attention


def main():
    attention = layer()
    query = numbers(QUERIES * BATCH * FEATURES, 5).view(QUERIES, BATCH, FEATURES)
    key = numbers(KEYS * BATCH * FEATURES, 6).view(KEYS, BATCH, FEATURES)
    value = numbers(KEYS * BATCH * FEATURES, 7).view(KEYS, BATCH, FEATURES)
    padding = torch.tensor([[False] * 5, [False, False, True, True, True]])
    mask = numbers(QUERIES * KEYS, 8).view(QUERIES, KEYS).clone()
    mask[0, 1] = mask[2, 0] = float("-inf")
    causal = torch.triu(torch.full((KEYS, KEYS), float("-inf")), diagonal=1)
    cases = {
        "plain": attention(query, key, value)[0],
        "padded": attention(query, key, value, key_padding_mask=padding)[0],
        "masked": attention(query, key, value, attn_mask=mask)[0],
        "causal": attention(key, key, key, attn_mask=causal)[0],
    }
    print("// Outputs of torch.nn.MultiheadAttention; made by multihead_reference.py.")
    print("#pragma once\n\n#include <vector>\n\nnamespace multihead_reference {\n")
    print(f"inline constexpr int features = {FEATURES}, heads = {HEADS}, queries = {QUERIES}, keys = {KEYS}, "
          f"batch = {BATCH};\n")
    for name, output in cases.items():
        print(f"/// [step][sequence][feature]\ninline const std::vector<double> {name} = {{")
        flat = output.flatten().tolist()
        for i in range(0, len(flat), 6):
            print("    " + " ".join(f"{x:.12f}," for x in flat[i:i + 6]))
        print("};\n")
    print("}  // namespace multihead_reference")


main()
