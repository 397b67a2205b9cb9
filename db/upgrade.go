package db

import (
	"context"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/fault"
)

// UpgradeCheck checks one condition that must be true before the services of a new
// version start.
type UpgradeCheck struct {
	Name string
	// Run returns an error if the services must not start. Otherwise it may return
	// a warning for operators.
	Run func(ctx context.Context) (warning string, err error)
}

// SchemaCheck returns an UpgradeCheck that calls [Check].
func SchemaCheck(d *sqlx.DB, list ...Migrations) UpgradeCheck {
	return UpgradeCheck{"Schema", func(ctx context.Context) (string, error) { return Check(ctx, d, list...) }}
}

// DataCheck returns an UpgradeCheck that fails with Precondition if rows still have
// an old form. The list has the data migrations of the previous version, because the new
// version neither reads the old form nor converts the rows.
func DataCheck(d *sqlx.DB, list ...DataMigration) UpgradeCheck {
	return UpgradeCheck{"Data migrations", func(ctx context.Context) (string, error) {
		var text []string
		for _, m := range list {
			n, err := m.Left(ctx, d)
			if err != nil {
				return "", fmt.Errorf("%s: %w", m.Name, Error(err))
			}
			if n > 0 {
				text = append(text, fmt.Sprintf("%s: %d rows", m.Name, n))
			}
		}
		if len(text) > 0 {
			return "", fault.New(fault.Precondition, "rows have an old form, run the data migrations with the previous version: %s", strings.Join(text, ", "))
		}
		return "", nil
	}}
}

// CheckUpgrade runs all checks, one after the other, and returns one result for each.
func CheckUpgrade(ctx context.Context, checks ...UpgradeCheck) UpgradeResults {
	out := make(UpgradeResults, 0, len(checks))
	for _, c := range checks {
		warning, err := c.Run(ctx)
		out = append(out, UpgradeResult{c.Name, warning, err})
	}
	return out
}

// UpgradeResult is the result of an [UpgradeCheck].
type UpgradeResult struct {
	Name    string
	Warning string
	Err     error
}

// UpgradeResults are the results of [CheckUpgrade], in the order of the checks.
type UpgradeResults []UpgradeResult

// ExitCode returns the exit code of nova-status upgrade check: 0 without errors and
// warnings, 1 with warnings only, 2 if the services must not start.
func (r UpgradeResults) ExitCode() int {
	code := 0
	for _, one := range r {
		switch {
		case one.Err != nil:
			code = 2
		case one.Warning != "":
			code = max(code, 1)
		}
	}
	return code
}
