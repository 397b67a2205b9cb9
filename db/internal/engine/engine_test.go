package engine_test

import (
	"strings"
	"testing"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

// TestNotLinked: this program imports no database package. The error for a database's URL says which package to import.
func TestNotLinked(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"sqlite:///:memory:":           `import _ "github.com/armature-go/armature/db/sqlitedb"`,
		"mysql://u:secret@h/d":         `import _ "github.com/armature-go/armature/db/mysqldb"`,
		"mysql+pymysql://u:secret@h/d": `import _ "github.com/armature-go/armature/db/mysqldb"`,
		"postgresql://u:secret@h/d":    "want mysql://",
	} {
		d, err := db.New(db.Config{URL: url})
		if d != nil || fault.CodeOf(err) != fault.Invalid || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want Invalid with %q", url, err, want)
		}
	}
}
