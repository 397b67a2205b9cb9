package db

import (
	"fmt"
	"reflect"
	"strings"
	"sync"

	"github.com/jmoiron/sqlx"
	"github.com/jmoiron/sqlx/reflectx"
)

var (
	structMapper = reflectx.NewMapperFunc("db", sqlx.NameMapper) // the same mapping as in sqlx's own handles
	columnLists  sync.Map                                        // from reflect.Type to string
)

// Columns returns the columns that sqlx reads into a struct, quoted and joined for a SELECT. The name of a field's column is in
// its tag db, by default the field's name in lower case. The fields of an embedded struct are also columns.
//
//	err = db.Error(d.GetContext(ctx, &host, "SELECT "+db.Columns[Host]()+" FROM hosts WHERE id = ?", id))
//
// Unlike "SELECT *", such a statement still works after a later release has added a column to the table. In a join, a name is
// ambiguous if several tables have it. Columns panics if T is not a struct, or if a tag has a dot or a quote. It also panics if
// an embedded field has a tag, because sqlx reads no column into such a field.
func Columns[T any]() string {
	t := reflect.TypeFor[T]()
	if list, ok := columnLists.Load(t); ok {
		return list.(string) //nolint:forcetypeassert // nothing else is stored
	}
	if t.Kind() != reflect.Struct {
		panic("db.Columns: " + t.String() + " is not a struct")
	}
	var names []string
	for _, f := range structMapper.TypeMap(t).Index {
		// A column's type may be a struct, such as sql.NullString. Its inner fields are not columns. For an inner
		// field, reflectx's Path is "column.field", and Name is only "field".
		tagged := f.Field.Tag.Get("db") != ""
		if f.Path == "" || f.Path != f.Name || f.Embedded && !tagged {
			continue
		}
		if f.Embedded {
			panic(fmt.Sprintf("db.Columns: %s: sqlx does not read a column into an embedded field, such as the one with the tag %q: make it a named field, or remove the tag", t, f.Name))
		}
		if strings.ContainsAny(f.Name, `."`) {
			panic(fmt.Sprintf("db.Columns: %s: the tag %q is not the name of a column: it has a dot or a quote", t, f.Name))
		}
		names = append(names, quoteName(f.Name))
	}
	list := strings.Join(names, ", ")
	columnLists.Store(t, list)
	return list
}

// columnsOr returns columns if it is set. Otherwise it returns the columns of T, or "" if T is not a struct.
func columnsOr[T any](columns string) string {
	if columns == "" && reflect.TypeFor[T]().Kind() == reflect.Struct {
		return Columns[T]()
	}
	return columns
}
