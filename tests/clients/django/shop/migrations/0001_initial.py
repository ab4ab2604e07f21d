from django.db import migrations, models
from page_django import counter_operations


class Migration(migrations.Migration):
    initial = True
    operations = [
        *counter_operations,
        migrations.CreateModel("Post", [
            ("id", models.BigAutoField(primary_key=True)),
            ("title", models.TextField()),
        ]),
        migrations.CreateModel("Comment", [
            ("id", models.BigAutoField(primary_key=True)),
            ("post", models.ForeignKey("shop.Post", on_delete=models.CASCADE)),
        ]),
        migrations.RunSQL(
            """
            CREATE FUNCTION count_comment() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM counter_incr('post:' || NEW.post_id || ':comments');
                RETURN NULL;
            END $$;
            CREATE TRIGGER count_comment AFTER INSERT ON shop_comment
                FOR EACH ROW EXECUTE FUNCTION count_comment();
            """,
            "DROP FUNCTION count_comment CASCADE",
        ),
    ]
