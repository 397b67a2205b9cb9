package operationtest_test

import (
	"context"
	"embed"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/service/operation"
	"github.com/armature-go/armature/service/operation/operationtest"
)

// order is the data of the operation of the tests.
type order struct {
	ID string `json:"id"`
}

var kind = operation.Kind[order]{Name: "order.pack"}

//go:embed migrations/*.sql
var files embed.FS

// shelf stands for the effects outside of the database. It counts, for each order, how often the order's thing was taken.
type shelf map[string]int

// scenario returns a scenario whose operation packs an order. The function take takes the order's thing from the shelf.
func scenario(take func(s shelf, id string), fails bool) func(testing.TB) operationtest.Scenario {
	run := 0
	return func(testing.TB) operationtest.Scenario {
		s := shelf{}
		run++
		other := noise(run)
		return operationtest.Scenario{
			Migrations: []db.Migrations{db.Embedded("", files)},
			Register: func(r *operation.Runner, d *sqlx.DB) {
				operation.Handle(r, kind,
					operation.Step[order]{
						Name: "take",
						Do: func(ctx context.Context, _ *operation.Op, o *order) error {
							if err := other(ctx, d); err != nil {
								return err
							}
							take(s, o.ID)
							return nil
						},
						Undo: func(_ context.Context, _ *operation.Op, o *order) error { delete(s, o.ID); return nil },
					},
					operation.Step[order]{Name: "pack", DoTx: func(ctx context.Context, tx *sqlx.Tx, _ *operation.Op, o *order) error {
						_, err := db.Exec(ctx, tx, `UPDATE orders SET packed = packed + 1 WHERE id = ?`, o.ID)
						return err
					}, UndoTx: func(ctx context.Context, tx *sqlx.Tx, _ *operation.Op, o *order) error {
						_, err := db.Exec(ctx, tx, `UPDATE orders SET packed = packed - 1 WHERE id = ?`, o.ID)
						return err
					}},
					operation.Step[order]{Name: "ship", Do: func(context.Context, *operation.Op, *order) error {
						if fails {
							return errors.New("no ship")
						}
						return nil
					}},
				)
			},
			Begin: func(ctx context.Context, d *sqlx.DB) (string, error) {
				if _, err := db.Exec(ctx, d, `INSERT INTO orders (id, packed) VALUES ('o1', 0)`); err != nil {
					return "", err
				}
				return operation.Begin(ctx, operation.NewStore(d), kind, "o1", &order{ID: "o1"})
			},
			Check: func(t testing.TB, op operation.Operation, d *sqlx.DB) {
				t.Helper()
				var packed int
				if err := d.Get(&packed, `SELECT packed FROM orders WHERE id = 'o1'`); err != nil {
					t.Fatal(err)
				}
				want, state := 1, operation.Succeeded
				if fails {
					want, state = 0, operation.Failed
				}
				if op.State != state || packed != want || s["o1"] != want {
					t.Errorf("%s, packed %d times, taken %d times, want %s, %d", op.State, packed, s["o1"], state, want)
				}
			},
		}
	}
}

// noise returns a function with a statement that stands for a statement of another goroutine. The statement runs before the step, in only
// every second run, so the numbers of the statements after it differ between the runs. OPERATIONTEST_BROKEN is 0 for the even runs and 1 for
// the odd runs. Without it, the statement never runs.
func noise(run int) func(context.Context, *sqlx.DB) error {
	return func(ctx context.Context, d *sqlx.DB) error {
		if strconv.Itoa(run%2) != os.Getenv("OPERATIONTEST_BROKEN") {
			return nil
		}
		var one int
		return d.GetContext(ctx, &one, `SELECT 1`)
	}
}

func takeOnce(s shelf, id string)   { s[id] = 1 }
func takeAlways(s shelf, id string) { s[id]++ }

// TestRun: an operation whose steps may be repeated passes, even if it fails and is undone.
func TestRun(t *testing.T) {
	t.Parallel()
	for name, fails := range map[string]bool{"succeeds": false, "fails": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			operationtest.Run(t, scenario(takeOnce, fails))
		})
	}
}

// TestRepeated is started by TestFinds. It has a step that takes effect twice.
func TestRepeated(t *testing.T) {
	if os.Getenv("OPERATIONTEST_BROKEN") == "" {
		t.Skip("TestFinds starts this test")
	}
	operationtest.Run(t, scenario(takeAlways, false))
}

// TestFinds: Run fails the test if a repeated step takes effect twice, and the failure names the place. The order of the statements differs
// from run to run, and the place is found in every order.
func TestFinds(t *testing.T) {
	t.Parallel()
	for _, run := range []string{"0", "1"} {
		t.Run(run, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestRepeated$", "-test.v")
			cmd.Env = append(os.Environ(), "OPERATIONTEST_BROKEN="+run)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "taken 2 times") || !strings.Contains(string(out), "killed at: ") || !strings.Contains(string(out), "--- PASS: TestRepeated/place_0") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
