from django.urls import path

from tests.example.ledger import views

urlpatterns = [
    path("sync/<str:name>/", views.create_sync),
    path("async/<str:name>/", views.create_async),
    path("awaitable/<str:name>/", views.create_awaitable),
    path("a-methods/<str:name>/", views.create_by_a_methods),
]
