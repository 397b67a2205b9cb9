package db

import (
	"reflect"
	"strings"
	"sync"

	"github.com/jmoiron/sqlx"
	"github.com/jmoiron/sqlx/reflectx"
)

var (
	structMapper = reflectx.NewMapperFunc("db", sqlx.NameMapper) // as the handles of package sqlx have it
	columnLists  sync.Map                                        // from reflect.Type to string
)

// Columns returns the columns that sqlx reads into a struct, quoted and joined for a SELECT. The name of a field's column is in
// its tag db, by default the field's name in lower case. The fields of an embedded struct without a tag are columns, too.
//
//	err = db.Error(d.GetContext(ctx, &host, "SELECT "+db.Columns[Host]()+" FROM hosts WHERE id = ?", id))
//
// Unlike "SELECT *", such a statement still works after a later release has added a column to the table. In a join, names that
// several tables have are ambiguous. Columns panics if T is not a struct.
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
		if !f.Embedded && f.Path != "" && !strings.Contains(f.Path, ".") {
			names = append(names, quoteName(f.Path))
		}
	}
	list := strings.Join(names, ", ")
	columnLists.Store(t, list)
	return list
}

// columnsOr returns the columns of a page: by default those of T, or none if T is not a struct.
func columnsOr[T any](columns string) string {
	if columns == "" && reflect.TypeFor[T]().Kind() == reflect.Struct {
		return Columns[T]()
	}
	return columns
}
