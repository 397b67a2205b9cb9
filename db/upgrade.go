package db

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"text/tabwriter"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/fault"
)

// UpgradeCheck looks for one thing that a new version of a program needs before
// its services start.
type UpgradeCheck struct {
	Name string
	// Run returns an error if the services must not start, or what operators
	// should know nevertheless, or neither.
	Run func(ctx context.Context) (warning string, err error)
}

// SchemaCheck fails as [Check] does.
func SchemaCheck(d *sqlx.DB, dir fs.FS) UpgradeCheck {
	return UpgradeCheck{"Schema", func(ctx context.Context) (string, error) { return "", Check(ctx, d, dir) }}
}

// DataCheck fails if rows have an old form, which the version that list is of
// still brought into the new one, and this one does not read any more.
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
			return "", fault.New(fault.Precondition, "data migrations have not ended, run them with the version before: %s", strings.Join(text, ", "))
		}
		return "", nil
	}}
}

// CheckUpgrade runs all checks, in order.
func CheckUpgrade(ctx context.Context, checks ...UpgradeCheck) UpgradeResults {
	out := make(UpgradeResults, 0, len(checks))
	for _, c := range checks {
		warning, err := c.Run(ctx)
		out = append(out, UpgradeResult{c.Name, warning, err})
	}
	return out
}

// UpgradeResult is what an [UpgradeCheck] found.
type UpgradeResult struct {
	Name    string
	Warning string
	Err     error
}

// UpgradeResults are those of all checks.
type UpgradeResults []UpgradeResult

// ExitCode is that of nova-status upgrade check: 0 if all is well, 1 if there are
// warnings, 2 if the services must not start.
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

// Print writes a table with a line for each check.
func (r UpgradeResults) Print(w io.Writer) error {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(tab, "CHECK\tRESULT\tDETAILS") // Flush returns the error
	for _, one := range r {
		result, details := "Success", ""
		switch {
		case one.Err != nil:
			result, details = "Failure", one.Err.Error()
		case one.Warning != "":
			result, details = "Warning", one.Warning
		}
		_, _ = fmt.Fprintf(tab, "%s\t%s\t%s\n", one.Name, result, strings.Join(strings.Fields(details), " ")) // Flush returns the error
	}
	return tab.Flush()
}
