package dbprom_test

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbprom"
	"github.com/armature-go/armature/db/dbtest"
)

// TestMetrics: each statement counts once, by its verb and its code.
func TestMetrics(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		m := dbprom.New()
		reg := prometheus.NewPedanticRegistry()
		reg.MustRegister(m)
		d, err := db.Open(t.Context(), db.Config{URL: url, Observe: m.Observe})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		for _, query := range []string{`CREATE TABLE things (id INTEGER NOT NULL PRIMARY KEY)`, `INSERT INTO things (id) VALUES (1)`, `INSERT INTO things (id) VALUES (?)`} {
			args := []any{}
			if query[len(query)-2] == '?' {
				args = append(args, 1)
			}
			_, _ = d.ExecContext(t.Context(), query, args...) // the last one fails
		}
		var n int
		if err := d.GetContext(t.Context(), &n, `SELECT COUNT(*) FROM things`); err != nil || n != 1 {
			t.Errorf("%d rows, %v", n, err)
		}
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, v := range f.GetMetric() {
				parts := []string{f.GetName()}
				for _, l := range v.GetLabel() {
					parts = append(parts, l.GetValue())
				}
				key := strings.Join(parts, " ")
				if c := v.GetCounter(); c != nil {
					got[key] = c.GetValue()
				} else {
					got[key] = float64(v.GetHistogram().GetSampleCount())
				}
			}
		}
		for key, want := range map[string]float64{
			"armature_db_statements_total OK other": 1, "armature_db_statements_total OK INSERT": 1, "armature_db_statements_total Conflict INSERT": 1,
			"armature_db_statement_duration_seconds INSERT": 2,
		} {
			if got[key] != want {
				t.Errorf("%s is %v, want %v; all: %v", key, got[key], want, got)
			}
		}
	})
}
