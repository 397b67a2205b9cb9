package placement_test

import (
	"math"
	"math/big"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/armature-go/armature/scheduler/placement"
)

// TestRatios: a ratio counts as the decimal number that an operator writes.
func TestRatios(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		total, reserved int64
		ratio           float64
		want            int64
	}{
		{100, 0, 1.15, 115},
		{100, 0, 1.1, 110},
		{1000, 0, 1.001, 1001},
		{3, 0, 0.1, 0},
		{10, 0, 0.7, 7},
		{100, 0, 0.29, 29},
		{1, 0, 4.35, 4},
		{100, 0, 4.35, 435},
		{8, 0, 16, 128},
		{7, 0, 1.5, 10},
		{7, 8, 1.5, -2},
		{7, 0, 0, 7},
		{7, 0, 1, 7},
		{0, 0, 1.15, 0},
		{65536, 512, 1.15, 74777},
		{3, 0, 1.0 / 3, 0},
		{9_000_000_000, 0, 1.15, 10_350_000_000},
		{1 << 60, 0, 1.5, 3 << 59},
	} {
		if got := (placement.Inventory{Total: tt.total, Reserved: tt.reserved, Ratio: tt.ratio}).Capacity(); got != tt.want {
			t.Errorf("(%d - %d) x %v = %d, want %d", tt.total, tt.reserved, tt.ratio, got, tt.want)
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 20_000 {
		ratio := math.Round(rng.Float64()*20*math.Pow10(rng.IntN(5))) / math.Pow10(rng.IntN(5))
		n := rng.Int64N(1 << rng.IntN(40))
		if ratio == 0 {
			continue
		}
		exact, ok := new(big.Rat).SetString(strconv.FormatFloat(ratio, 'f', -1, 64))
		if !ok {
			t.Fatal(ratio)
		}
		exact.Mul(exact, new(big.Rat).SetInt64(n))
		want := new(big.Int).Div(exact.Num(), exact.Denom()).Int64()
		if got := (placement.Inventory{Total: n, Ratio: ratio}).Capacity(); got != want {
			t.Fatalf("%d x %v = %d, want %d", n, ratio, got, want)
		}
	}
}
